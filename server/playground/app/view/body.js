/** The text of a message: Markdown of models, plain text of people. */
import { h } from "../core/ui.js";
import { showsDifference } from "../state/compare.js";
import { columns } from "../state/library.js";
import { difference } from "../text/difference.js";
import { Markdown } from "../text/markdown.js";

/** @param {{message: import("../talk/types.js").Message}} props */
export function Body({ message }) {
  const first = comparedWith(message);
  if (first !== null) return h(Difference, { before: first, after: message.content });
  if (message.role === "assistant") return h(Markdown, { text: message.content });
  return h("div", { class: "plain" }, message.content);
}

/**
 * The answer of the first column that this one is compared with, null if it is not.
 * @param {import("../talk/types.js").Message} message
 */
function comparedWith({ id, talk, role }) {
  const [first, ...others] = columns.value;
  if (!showsDifference.value || role !== "assistant") return null;
  const own = others.find((other) => other.id === talk);
  const at = own ? own.path.value.indexOf(id) : -1;
  const beside = first.path.value[at];
  const message = beside ? first.messages.get(beside)?.value : undefined;
  return message?.role === "assistant" ? message.content : null;
}

/** @param {{before: string, after: string}} props */
function Difference({ before, after }) {
  const pieces = difference(before, after);
  if (!pieces) return h("p", { class: "muted" }, "These answers are too long to be compared word by word.");
  return h("div", { class: "plain" }, pieces.map(({ kind, text }, index) => (kind === "same" ? text : h(kind === "gone" ? "del" : "ins", { key: index }, text))));
}
