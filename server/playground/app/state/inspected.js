/** The answer that the inspector looks into: the one that was chosen, else the last. */
import { signal } from "../core/ui.js";

/** By conversation: the message that was chosen. */
export const inspected = signal(/** @type {Record<string, string>} */ ({}));

/**
 * @param {string} talk
 * @param {string} message
 */
export function lookInto(talk, message) {
  inspected.value = { ...inspected.peek(), [talk]: message };
}

/**
 * @param {import("../talk/talk.js").Talk} talk
 * @returns {import("../talk/types.js").Message | undefined}
 */
export function inspectedOf(talk) {
  const path = talk.path.value;
  const chosen = inspected.value[talk.id];
  const answers = path.filter((id) => talk.messages.get(id)?.peek().role === "assistant");
  const id = path.includes(chosen) ? chosen : answers.at(-1);
  return id ? talk.messages.get(id)?.value : undefined;
}
