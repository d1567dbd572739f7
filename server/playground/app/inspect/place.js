/** Where in a JSON text something stands. */

/**
 * The line, from 1, of what a JSON pointer points to; 0 where that cannot be told.
 * @param {string} text
 * @param {string} pointer such as `/properties/a/format`
 */
export function lineOf(text, pointer) {
  const steps = pointer.split("/").slice(1).map((step) => step.replaceAll("~1", "/").replaceAll("~0", "~"));
  const at = offsetOf(text, steps);
  return at < 0 ? 0 : text.slice(0, at).split("\n").length;
}

/**
 * @param {string} text valid JSON, as far as it is walked
 * @param {string[]} steps
 */
function offsetOf(text, steps) {
  const token = /\s*("(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+)/gy;
  /** @type {{steps: string[], index: number, name: string | null}[]} */
  const open = [];
  let expectsName = false;
  for (let found = token.exec(text); found; found = token.exec(text)) {
    const start = found.index + found[0].length - found[1].length;
    const word = found[1];
    const top = open[open.length - 1];
    if (word === "}" || word === "]") {
      open.pop();
      expectsName = false;
    } else if (word === ",") {
      if (top && top.name === null) top.index++;
      expectsName = top !== undefined && top.name !== null;
    } else if (word === ":") {
      expectsName = false;
    } else if (expectsName && top) {
      top.name = JSON.parse(word);
      if (same([...top.steps, String(top.name)], steps)) return start;
    } else {
      const path = top ? [...top.steps, top.name ?? String(top.index)] : [];
      if (top?.name === null && same(path, steps)) return start;
      if (word === "{" || word === "[") {
        open.push({ steps: path, index: 0, name: word === "{" ? "" : null });
        expectsName = word === "{";
      }
    }
  }
  return -1;
}

/**
 * @param {string[]} a
 * @param {string[]} b
 */
const same = (a, b) => a.length === b.length && a.every((step, index) => step === b[index]);
