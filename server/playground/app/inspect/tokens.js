/** An answer by its tokens: how likely each was, what else could have come, and a way to go on with that. */
import { Fragment, h, useRef, useState } from "../core/ui.js";
import { forkAt, retry } from "../state/actions.js";
import { inspectedOf } from "../state/inspected.js";

/** Probabilities down to which a step of the ramp reaches; below the last is the fifth. */
const RAMP = [0.8, 0.5, 0.25, 0.1];
const STEPS = ["80 % and more", "50 to 80 %", "25 to 50 %", "10 to 25 %", "below 10 %"];

/** @typedef {import("../talk/types.js").Token} Token */

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export default function Tokens({ talk }) {
  const message = inspectedOf(talk);
  const [at, setAt] = useState(-1);
  const text = useRef(/** @type {HTMLElement | null} */ (null));
  const tokens = message?.tokens ?? [];
  if (!message || !tokens.length) return h(Empty, { talk, message });
  const chosen = tokens[at];
  const sure = Math.exp(tokens.reduce((sum, token) => sum + token.logprob, 0) / tokens.length);
  return h("div", { class: "stack" },
    h("p", { class: "small muted" }, `${tokens.length} tokens; on average each had ${percent(sure)}. Point at one, or move to it with the arrow keys, for what else could have come.`),
    h("div", { class: "legend", "aria-hidden": "true" }, STEPS.map((label, index) => h("span", { key: label, class: `token step-${index}` }, label))),
    h("div", { class: "token-text", ref: text, role: "toolbar", "aria-label": "Tokens of the answer", onKeyDown: walk }, tokens.map((token, index) => h(Fragment, { key: index }, h("button", {
      type: "button", class: `token step-${stepOf(token)}`, "aria-pressed": index === at, tabIndex: index === (chosen ? at : 0) ? 0 : -1,
      "aria-label": `${visible(token.token)}, ${percent(Math.exp(token.logprob))}`,
      onClick: () => setAt(index), onFocus: () => setAt(index), onMouseEnter: () => setAt(index),
    }, shown(token.token)), token.token.includes("\n") && h("br", {})))),
    chosen ? h(Alternatives, { talk, message, at, token: chosen, onFork: () => tokensIn(text.current)[at]?.focus() }) : null,
  );
}

/**
 * @param {HTMLElement | null} text
 * @returns {HTMLElement[]}
 */
const tokensIn = (text) => [...(text?.querySelectorAll("button") ?? [])];

/**
 * The arrows lead from token to token, so that one of them alone is in the order of the keys and what else could have come
 * is the next stop behind it.
 * @param {KeyboardEvent} event
 */
function walk(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const tokens = tokensIn(/** @type {HTMLElement} */ (event.currentTarget));
  const at = tokens.findIndex((token) => token === document.activeElement);
  const steps = { ArrowRight: () => at + 1, ArrowLeft: () => at - 1, ArrowDown: () => lineFrom(tokens, at, 1), ArrowUp: () => lineFrom(tokens, at, -1), Home: () => 0, End: () => tokens.length - 1 };
  const next = steps[/** @type {keyof typeof steps} */ (event.key)];
  if (!next) return;
  event.preventDefault();
  tokens[next()]?.focus();
}

/**
 * The token above or below another, as the text is broken into lines; -1 where there is none.
 * @param {HTMLElement[]} tokens
 * @param {number} at
 * @param {-1 | 1} step
 */
function lineFrom(tokens, at, step) {
  /** @param {HTMLElement} one @param {HTMLElement} other */
  const areInLine = (one, other) => Math.abs(one.offsetTop - other.offsetTop) < one.offsetHeight / 2;
  /** @param {number} index */
  const distance = (index) => Math.abs(tokens[index].offsetLeft - tokens[at].offsetLeft);
  let found = at;
  while (tokens[found] && areInLine(tokens[at], tokens[found])) found += step;
  if (!tokens[found]) return -1;
  for (let next = found + step; tokens[next] && areInLine(tokens[found], tokens[next]) && distance(next) <= distance(found); next += step) found = next;
  return found;
}

/** @param {{talk: import("../talk/talk.js").Talk, message: import("../talk/types.js").Message | undefined}} props */
function Empty({ talk, message }) {
  const { params } = talk.settings.value;
  const asks = params.logprobs === true;
  const wish = () => talk.changeSettings({ params: { ...params, logprobs: true, top_logprobs: 5 } });
  const again = () => {
    wish();
    if (message) retry(talk, message.id);
  };
  return h("div", { class: "stack" },
    h("p", {}, asks ? "The next answer will come with the probability of each token." : "See how likely each token of an answer was, and what the model would have said instead."),
    h("div", { class: "row" },
      !asks && h("button", { type: "button", class: "button", onClick: wish }, "Ask for it from now on"),
      message && message.state !== "writing" && h("button", { type: "button", class: "button primary", onClick: again }, "Answer again with it"),
    ),
  );
}

/**
 * @param {{talk: import("../talk/talk.js").Talk, message: import("../talk/types.js").Message, at: number, token: Token,
 *          onFork: () => void}} props
 */
function Alternatives({ talk, message, at, token, onFork }) {
  const others = token.top_logprobs;
  return h("section", { class: "alternatives", "aria-label": "Alternatives" },
    h("h3", {}, h("code", {}, visible(token.token)), h("span", { class: "muted small" }, ` ${percent(Math.exp(token.logprob))}, log-probability ${token.logprob.toFixed(3)}`)),
    !others.length && h("p", { class: "small muted" }, "Set top_logprobs to see what else could have come."),
    h("ul", {}, others.map((other) => {
      const isChosen = other.token === token.token && same(other.bytes, token.bytes);
      const forks = !isChosen && message.state !== "writing" && isWhole(other.bytes);
      return h("li", { key: `${other.token} ${other.logprob}` },
        h("button", { type: "button", disabled: !forks, title: forks ? "Cut the answer here and go on with this" : undefined, onClick: () => (void forkAt(talk, message.id, at, other), onFork()) },
          h("span", { class: "bar", style: { width: `${Math.exp(other.logprob) * 100}%` } }),
          h("code", {}, visible(other.token)),
          h("span", { class: "spring" }),
          isChosen && h("span", { class: "chip" }, "chosen"),
          h("span", { class: "small" }, percent(Math.exp(other.logprob))),
        ));
    })),
    others.length > 0 && h("p", { class: "small muted" }, "Choose another: the answer is cut there and goes on from it, beside the one that is there."),
  );
}

/** @param {Token} token */
function stepOf({ logprob }) {
  const step = RAMP.findIndex((least) => Math.exp(logprob) >= least);
  return step < 0 ? RAMP.length : step;
}

/** @param {number} probability */
const percent = (probability) => (probability >= 0.9995 ? "100 %" : probability < 0.0001 ? "below 0.01 %" : `${Number((probability * 100).toPrecision(3))} %`);

/** @param {string} text */
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";

/** @param {string} text */
const shown = (text) => text.replaceAll("\n", "⏎");

/**
 * Whether a token ends with a whole character, so that an answer can be cut behind it.
 * @param {number[] | null} bytes
 */
function isWhole(bytes) {
  try {
    return bytes !== null && bytes.length > 0 && new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes)) !== "";
  } catch {
    return false;
  }
}

/**
 * @param {number[] | null} a
 * @param {number[] | null} b
 */
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
