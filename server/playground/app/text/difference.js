/** Two texts, word by word: what stands in one of them alone. */

/** Of longer texts the difference is not computed: it takes time and memory with the product of their words. */
export const MOST_WORDS = 3000;

/** @typedef {{kind: "same" | "gone" | "new", text: string}} Piece */

/** @param {string} text */
const words = (text) => text.match(/\s+|[^\s\w]|\w+/gu) ?? [];

/**
 * The second text with what it lacks of the first, in order; null where they are too long.
 * @param {string} before
 * @param {string} after
 * @returns {Piece[] | null}
 */
export function difference(before, after) {
  const a = words(before);
  const b = words(after);
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return null;
  const width = b.length + 1;
  // Lengths of the longest common subsequences of the ends that begin at (i, j).
  const common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  /** @type {Piece[]} */
  const pieces = [];
  /** @param {Piece["kind"]} kind @param {string} text */
  const put = (kind, text) => {
    const last = pieces[pieces.length - 1];
    if (last?.kind === kind) last.text += text;
    else pieces.push({ kind, text });
  };
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) put("same", (j++, a[i++]));
    else if (j === b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) put("gone", a[i++]);
    else put("new", b[j++]);
  }
  return pieces;
}
