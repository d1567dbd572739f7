/**
 * Markdown as elements, through an allow-list of the lexer's tokens.
 *
 * No string of HTML exists at any time: what a model writes as HTML is shown as the text that it is.
 */
import { Fragment, h, useEffect, useRef, useState } from "../core/ui.js";
import { Marked } from "../../vendor/marked.js";
import { CodeBlock } from "./code.js";
import { reading } from "./delimiters.js";

/** @typedef {any} Token a token of marked's lexer */

const marked = new Marked({ gfm: true }, reading);
const SAFE_LINK = /^(https?:|mailto:)/i;
/** The heading of the message that the text is of. */
const MESSAGE_LEVEL = 2;
/** Blocks behind the last of these may still change what stands before them, as the next item of a list. */
const UNSETTLED_BLOCKS = 2;
const BLOCKS_OF_A_PART = 30;

// The first text that is read makes a browser compile marked's patterns, which takes longer than a frame has.
setTimeout(() => marked.lexer("# a\n\nb **c** `d` [e](f) $g$\n\n- h\n  1. i\n\n> j\n\n| k |\n| - |\n| l |\n\n```\nm\n```\n"));

/**
 * A text of Markdown. While it grows only its end is read again.
 * @param {{text: string}} props
 */
export function Markdown({ text }) {
  const settled = useRef(nothing());
  if (!text.startsWith(settled.current.text)) settled.current = nothing();
  const tail = marked.lexer(text.slice(settled.current.text.length));
  let above = settled.current.level;
  const made = tail.map((token) => {
    // A model may begin anywhere; a page's headings go down step by step.
    if (token.type === "heading") above = Math.min(MESSAGE_LEVEL + token.depth, above + 1, 6);
    return h(Block, { token, raw: token.raw, level: above });
  });
  const open = made.slice(settle(settled, text, tail, made));
  const { nodes, parts } = settled.current;
  return h("div", { class: "markdown" }, parts, part(parts.length, [...nodes, ...open]));
}

/** @param {number} key @param {any[]} nodes */
const part = (key, nodes) => h("div", { key, class: "part" }, nodes);

/** What is read of a text for good: its elements, those of whole parts in elements of their own. */
const nothing = () => ({ text: "", level: MESSAGE_LEVEL, nodes: /** @type {any[]} */ ([]), parts: /** @type {any[]} */ ([]) });

/**
 * Keep what can no longer change, so that it is neither read nor compared again; a browser draws no part again that
 * stands outside of what is seen.
 * @param {{current: ReturnType<typeof nothing>}} settled
 * @param {string} text
 * @param {Token[]} tail the blocks that were read
 * @param {any[]} made their elements
 * @returns {number} how many of them are kept
 */
function settle(settled, text, tail, made) {
  const count = Math.max(0, tail.length - UNSETTLED_BLOCKS);
  if (!count) return 0;
  const { current } = settled;
  const now = current.text + tail.slice(0, count).map((token) => token.raw).join("");
  // The lexer may have read returns as line feeds or tabs as spaces; then its texts are not the beginning of ours.
  if (!text.startsWith(now)) return 0;
  let nodes = [...current.nodes, ...made.slice(0, count)];
  const parts = [...current.parts];
  const { level } = made[count - 1].props;
  for (; nodes.length >= BLOCKS_OF_A_PART; nodes = nodes.slice(BLOCKS_OF_A_PART)) parts.push(part(parts.length, nodes.slice(0, BLOCKS_OF_A_PART)));
  settled.current = { text: now, level, nodes, parts };
  return count;
}

/**
 * One block; made again only when its own text has changed.
 * @param {{token: Token, raw: string, level: number}} props `level` is that of a heading
 */
function Block({ token, raw, level }) {
  const made = useRef({ raw: "", level: 0, node: /** @type {any} */ (null) });
  const { current } = made;
  if (current.raw !== raw || current.level !== level || current.node === null) {
    const node = token.type === "heading" ? h(`h${level}`, { class: `heading-${token.depth}` }, spans(token.tokens)) : block(token);
    made.current = { raw, level, node };
  }
  return made.current.node;
}

/** @param {Token[]} tokens */
const blocks = (tokens) => tokens.map(block);

/**
 * @param {Token} token
 * @returns {any}
 */
function block(token) {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      return h("p", { class: `heading-${token.depth}` }, h("strong", {}, spans(token.tokens)));
    case "paragraph":
      return h("p", {}, spans(token.tokens));
    case "text":
      return token.tokens ? spans(token.tokens) : token.text;
    case "code":
      return h(CodeBlock, { text: token.text, language: (token.lang ?? "").match(/^\S*/)[0] });
    case "blockquote":
      return h("blockquote", {}, blocks(token.tokens));
    case "list":
      return h(token.ordered ? "ol" : "ul", token.ordered && token.start !== 1 ? { start: token.start } : {}, token.items.map(item));
    case "table":
      return table(token);
    case "formula":
    case "opened":
      return h("p", {}, span(token));
    case "hr":
      return h("hr", {});
    default:
      return h("p", { class: "verbatim" }, token.raw);
  }
}

/** @param {Token} token */
function item(token) {
  const box = token.task && h("input", { type: "checkbox", checked: token.checked, disabled: true, "aria-label": token.checked ? "done" : "to do" });
  const parts = token.tokens.filter((/** @type {Token} */ part) => part.type !== "checkbox");
  return h("li", token.task ? { class: "task" } : {}, box, blocks(parts));
}

/** @param {Token} token */
function table({ header, rows }) {
  /** @type {(name: string) => (cell: Token) => any} */
  const cell = (name) => ({ tokens, align }) => h(name, { class: align ? `align-${align}` : undefined, ...(name === "th" ? { scope: "col" } : {}) }, spans(tokens));
  return h("div", { class: "table", role: "region", "aria-label": "Table", tabIndex: 0 }, h("table", {},
    h("thead", {}, h("tr", {}, header.map(cell("th")))),
    h("tbody", {}, rows.map((/** @type {Token[]} */ row) => h("tr", {}, row.map(cell("td"))))),
  ));
}

/** @param {Token[]} tokens */
const spans = (tokens) => (tokens ?? []).map(span);

/**
 * @param {Token} token
 * @returns {any}
 */
function span(token) {
  switch (token.type) {
    case "text":
    case "escape":
      return token.tokens ? h(Fragment, {}, spans(token.tokens)) : token.text;
    case "strong":
    case "em":
    case "del":
      return h(token.type, {}, spans(token.tokens));
    case "codespan":
      return h("code", {}, token.text);
    case "br":
      return h("br", {});
    case "formula":
      return h(Formula, { tex: token.text, display: token.display, raw: token.raw.trim() });
    case "opened":
      return h("code", { class: "formula" }, token.text);
    case "link":
      return link(token.href, spans(token.tokens), token.raw);
    case "image":
      return link(token.href, `Image: ${token.text || token.href}`, token.raw);
    default:
      return token.raw;
  }
}

/**
 * A link where it leads to the web; else the text that was written. Images of elsewhere are links as well, since to
 * show one would tell its host that the answer was read.
 * @param {string} address
 * @param {any} children
 * @param {string} raw
 */
function link(address, children, raw) {
  if (!SAFE_LINK.test(address)) return raw;
  return h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, children);
}

/** @type {any} */
let drawn = null;

/**
 * A formula; until what draws it has been read, the text that it was written as.
 * @param {{tex: string, display: boolean, raw: string}} props
 */
function Formula(props) {
  const [ready, setReady] = useState(drawn !== null);
  useEffect(() => {
    if (ready) return;
    import("./math.js").then((module) => (drawn = module.Formula), () => null).then(() => setReady(drawn !== null));
  }, []);
  return ready ? h(drawn, props) : h("code", { class: "formula" }, props.raw);
}
