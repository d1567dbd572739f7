/** Code that a model writes: by lines, so that a long one grows cheaply, in colours, with a button that copies it. */
import { h, useRef, useState } from "../core/ui.js";
import { copyText } from "../core/clipboard.js";
import { IconButton } from "../core/glyphs.js";
import { languageOf, tokensOf } from "./highlight.js";

/** @typedef {import("./highlight.js").Token} Token */
/** @typedef {{start: number, text: string, tokens: Token[] | null}} Piece */

const LINES_OF_A_PIECE = 40;
const COPIED_MS = 1500;

/** @param {{text: string, language: string}} props */
export function CodeBlock({ text, language }) {
  return h("figure", { class: "code-block" },
    h("figcaption", {}, h("span", {}, language || "text"), h(CopyButton, { text, label: "Copy code" })),
    h("pre", { tabIndex: 0, role: "region", "aria-label": `Code${language ? `, ${language}` : ""}` }, h("code", {}, h(Coloured, { text, language }))),
  );
}

/**
 * Code in colours, in pieces of which only the last is made again while it grows.
 * @param {{text: string, language: string}} props
 */
export function Coloured({ text, language }) {
  const made = useRef({ text: "", language: "", pieces: /** @type {Piece[]} */ ([]) });
  const { current } = made;
  if (current.text !== text || current.language !== language) {
    const grows = current.language === language && text.startsWith(current.text);
    made.current = { text, language, pieces: piecesOf(text, language, grows ? current.pieces.slice(0, -1) : []) };
  }
  return made.current.pieces.map((piece) => h(PieceOfCode, { key: piece.start, piece }));
}

/** @param {{piece: Piece}} props */
function PieceOfCode({ piece }) {
  const made = useRef({ text: "", node: /** @type {any} */ (null) });
  if (made.current.node === null || made.current.text !== piece.text) {
    const { text, tokens } = piece;
    made.current = { text, node: h("span", {}, tokens ? tokens.map((token, index) => (token.kind === "plain" ? token.text : h("span", { key: index, class: `code-${token.kind}` }, token.text))) : text) };
  }
  return made.current.node;
}

/**
 * @param {string} text
 * @param {string} name of the language
 * @param {Piece[]} settled the pieces before those that are made here
 * @returns {Piece[]}
 */
function piecesOf(text, name, settled) {
  const language = languageOf(name);
  const last = settled[settled.length - 1];
  let start = last ? last.start + last.text.length : 0;
  const pieces = [...settled];
  /** @type {Token[]} */
  let tokens = [];
  let [length, lines] = [0, 0];
  const end = () => {
    if (length) pieces.push({ start, text: text.slice(start, start + length), tokens: language ? tokens : null });
    start += length;
    [tokens, length, lines] = [[], 0, 0];
  };
  for (const token of language ? tokensOf(text, language, start) : lined(text.slice(start))) {
    tokens.push(token);
    length += token.text.length;
    lines += token.text.split("\n").length - 1;
    if (lines >= LINES_OF_A_PIECE && token.kind === "plain") end();
  }
  end();
  return pieces;
}

/**
 * Text of no language by its lines.
 * @param {string} text
 * @returns {Generator<Token>}
 */
function* lined(text) {
  for (const line of text.match(/[^\n]*\n|[^\n]+$/g) ?? []) yield { kind: "plain", text: line };
}

/**
 * Copies a text, and shows that it did.
 * @param {{text: string, label: string}} props
 */
export function CopyButton({ text, label }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    setCopied(await copyText(text));
    setTimeout(() => setCopied(false), COPIED_MS);
  };
  return h(IconButton, { glyph: copied ? "check" : "copy", label: copied ? "Copied" : label, small: true, onClick: copy });
}
