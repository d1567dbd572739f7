/** Code that a model writes: by lines, so that a long one grows cheaply, with a button that copies it. */
import { h, useState } from "../core/ui.js";
import { copyText } from "../core/clipboard.js";
import { IconButton } from "../core/glyphs.js";

const LINES_OF_A_PIECE = 40;
const COPIED_MS = 1500;

/** @param {{text: string, language: string}} props */
export function CodeBlock({ text, language }) {
  const lines = text.split("\n");
  const pieces = [];
  for (let at = 0; at < lines.length; at += LINES_OF_A_PIECE) {
    pieces.push(lines.slice(at, at + LINES_OF_A_PIECE).join("\n") + (at + LINES_OF_A_PIECE < lines.length ? "\n" : ""));
  }
  return h("figure", { class: "code-block" },
    h("figcaption", {}, h("span", {}, language || "text"), h(CopyButton, { text, label: "Copy code" })),
    h("pre", { tabIndex: 0, role: "region", "aria-label": `Code${language ? `, ${language}` : ""}` }, h("code", {}, pieces.map((piece, index) => h("span", { key: index }, piece)))),
  );
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
