/** What the inspector looks into: the answer that was chosen, else the last; and the request that comes next. */
import { signal } from "../core/ui.js";
import { requestOf } from "../talk/request.js";

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

/**
 * The answer that stands last and can be continued, where nothing else is about to be said.
 * @param {import("../talk/talk.js").Talk} talk
 * @returns {import("../talk/types.js").Message | undefined}
 */
export function openAnswer(talk) {
  const { text, images } = talk.record.value.draft;
  const last = talk.messages.get(talk.path.value.at(-1) ?? "")?.value;
  const isOpen = last?.role === "assistant" && last.content && last.state !== "writing" && !text && !images.length;
  return isOpen ? last : undefined;
}

/**
 * The request for what stands in a conversation and in the composer, which continues an answer where one stands last; a text
 * that says why there is none.
 * @param {import("../talk/talk.js").Talk} talk
 * @returns {Record<string, any> | string}
 */
export function nextRequest(talk) {
  const { text, images } = talk.record.value.draft;
  const continues = openAnswer(talk) !== undefined;
  const draft = text || images.length ? [{ role: "user", content: text, images }] : [];
  return made(talk, [...talk.shown(), .../** @type {any} */ (draft)], continues);
}

/**
 * The request that is answered by the answer that the inspector looks into, as it would be made now; the next one where
 * something stands in the composer, or where nothing was answered yet.
 * @param {import("../talk/talk.js").Talk} talk
 * @returns {Record<string, any> | string}
 */
export function shownRequest(talk) {
  const { text, images } = talk.record.value.draft;
  const answer = inspectedOf(talk);
  if (!answer || text || images.length) return nextRequest(talk);
  return made(talk, talk.path.value.slice(0, talk.path.value.indexOf(answer.id)).map((id) => talk.peek(id)));
}

/**
 * @param {import("../talk/talk.js").Talk} talk
 * @param {import("../talk/types.js").Message[]} messages
 * @param {boolean} [continues]
 */
function made(talk, messages, continues) {
  try {
    return requestOf(talk.settings.value, messages, { continues });
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
