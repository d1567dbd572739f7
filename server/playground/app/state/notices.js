/** Short messages to the person: what was done, and how it is undone. */
import { signal } from "../core/ui.js";
import { newId } from "../core/ids.js";

/** How long a notice stays that offers something, and one that only tells. */
const OFFER_MS = 10_000;
const TELL_MS = 4000;

/** @typedef {{id: string, text: string, action?: {label: string, act: () => void}}} Notice */

export const notices = signal(/** @type {Notice[]} */ ([]));

/** What screen readers are told in passing: the state of an answer, never its text. */
export const status = signal("");

/**
 * @param {string} text
 * @param {Notice["action"]} [action]
 */
export function notify(text, action) {
  const id = newId();
  notices.value = [...notices.peek(), { id, text, action }].slice(-3);
  setTimeout(() => dismiss(id), action ? OFFER_MS : TELL_MS);
}

/** @param {string} id */
export function dismiss(id) {
  notices.value = notices.peek().filter((notice) => notice.id !== id);
}
