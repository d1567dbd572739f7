/** The answers that are under way, and how they are ended; `run.js`, which reads them, comes with the first. */
import { signal } from "../core/ui.js";

/**
 * @typedef {import("./talk.js").Talk} Talk
 *
 * @typedef {object} Run an answer that is under way
 * @property {Talk} talk
 * @property {"waiting" | "asking" | "writing"} stage for a connection; for the first token; tokens come
 * @property {AbortController} abort
 * @property {number} began ms of `performance.now()`
 */

/** By the id of the first message that is written. */
export const runs = signal(/** @type {Map<string, Run>} */ (new Map()));

/**
 * Whether answers of these conversations are under way.
 * @param {Talk[]} talks
 */
export const areWritten = (talks) => [...runs.value.values()].some((run) => talks.includes(run.talk));

/**
 * End all answers of a conversation; what has come of them stays.
 * @param {Talk} talk
 */
export function stopAll(talk) {
  for (const run of runs.peek().values()) if (run.talk === talk) run.abort.abort();
}
