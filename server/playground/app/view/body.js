/** The text of a message: Markdown of models, plain text of people. */
import { h } from "../core/ui.js";
import { Markdown } from "../text/markdown.js";

/** @param {{message: import("../talk/types.js").Message}} props */
export function Body({ message }) {
  if (message.role === "assistant") return h(Markdown, { text: message.content });
  return h("div", { class: "plain" }, message.content);
}
