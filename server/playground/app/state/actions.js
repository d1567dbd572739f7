/** What a person does with conversations. */
import { counted } from "../core/format.js";
import { breath } from "../core/pace.js";
import { answer } from "../talk/run.js";
import { runs } from "../talk/runs.js";
import { columns } from "./library.js";
import { notify, status } from "./notices.js";
import { preferences } from "./preferences.js";
import { stops } from "./saying.js";

/**
 * @typedef {import("../talk/talk.js").Talk} Talk
 * @typedef {import("../talk/types.js").Message} Message
 */

const TITLE_CHARS = 60;

/**
 * Answer, and say when it is done: once, however many columns there are.
 * @param {Promise<void>[]} answers
 */
async function announced(answers) {
  status.value = "Generating";
  await Promise.all(answers);
  if (runs.peek().size) return;
  const last = columns.peek().map((talk) => talk.shown().at(-1));
  const tokens = last.reduce((sum, message) => sum + (message?.outcome?.tokens ?? 0), 0);
  const length = counted(tokens, "token");
  const failed = last.some((message) => message?.state === "failed");
  status.value = failed ? "The answer failed" : last.some((message) => message?.state === "stopped") ? `Stopped after ${length}` : `Answer complete, ${length}`;
}

/**
 * Say something to each of the conversations and have it answered; nothing said answers what stands there.
 * @param {Talk[]} talks
 * @param {{text: string, images: string[]}} said
 */
export async function send(talks, { text, images }) {
  /** @type {Promise<void>[]} */
  const answers = [];
  const inTurn = preferences.peek().inTurn;
  const stopsBefore = stops;
  for (const talk of talks) {
    // Each column is a piece of work of its own, so that the page is never busy for long.
    if (talk !== talks[0]) await breath();
    let last = talk.path.peek().at(-1) ?? null;
    if (text || images.length) {
      last = talk.add(last, { role: "user", content: text, ...(images.length ? { images } : {}) });
      if (!talk.record.peek().title) talk.changeRecord({ title: titleOf(text) });
    }
    if (last === null || stops !== stopsBefore) continue;
    const place = last;
    const before = inTurn ? Promise.all(answers) : null;
    answers.push(before ? before.then(() => answer(talk, place)) : answer(talk, place));
  }
  return announced(answers);
}

/** @param {string} text */
export function titleOf(text) {
  const line = text.trim().split("\n")[0] || "Images";
  return line.length > TITLE_CHARS ? `${line.slice(0, TITLE_CHARS - 1)}…` : line;
}

/**
 * Answer again: beside the answer that is there, or the message that is named.
 * @param {Talk} talk
 * @param {string} id
 */
export function retry(talk, id) {
  const { role, parent } = talk.peek(id);
  return announced([answer(talk, role === "assistant" ? parent : id)]);
}

/**
 * Let the model go on from where an answer ends.
 * @param {Talk} talk
 * @param {string} id
 */
export function continueAnswer(talk, id) {
  const { parent } = talk.peek(id);
  focusMessage(id);
  return announced([answer(talk, parent, { continues: id })]);
}

/**
 * @param {Talk} talk
 * @param {string} id
 * @param {Pick<Message, "role" | "content">} change
 * @param {boolean} branch keep the old version, and answer the new one
 */
export function editMessage(talk, id, change, branch) {
  const { parent, images, content, outcome } = talk.peek(id);
  if (!branch) {
    // The figures are those of a text that a model wrote.
    const kept = outcome && content !== change.content ? { model: outcome.model } : outcome;
    return talk.change(id, { ...change, state: "done", tokens: undefined, outcome: kept });
  }
  const made = talk.add(parent, { ...change, ...(images ? { images } : {}) });
  focusMessage(made);
  return announced([answer(talk, made)]);
}

/**
 * Delete a message, with a notice that brings it back, and the focus on what stands there now.
 * @param {Talk} talk
 * @param {string} id
 */
export function deleteMessage(talk, id) {
  const at = talk.path.peek().indexOf(id);
  const restore = talk.remove(id);
  notify("Message deleted", { label: "Undo", act: () => (restore(), focusMessage(id)) });
  const path = talk.path.peek();
  focusMessage(path[Math.min(at, path.length - 1)]);
}

/**
 * Give the focus to a message, or to its button of that label, where what had it is gone: else keys would begin at the top
 * of the page again. Without a message the box to type in has it.
 * @param {string | undefined} id
 * @param {string} [label]
 */
export function focusMessage(id, label) {
  requestAnimationFrame(() => {
    const message = id && document.querySelector(`[data-id="${id}"]`);
    const place = (message && label && message.querySelector(`[aria-label="${label}"]`)) || message || document.querySelector("#composer textarea");
    if (place instanceof HTMLElement) place.focus();
  });
}

/**
 * The result that stands behind a call, undefined if there is none.
 * @param {Talk} talk
 * @param {string} id the message with the call
 * @param {string} callId
 */
export function resultOf(talk, id, callId) {
  const path = talk.path.value;
  for (const next of path.slice(path.indexOf(id) + 1)) {
    const message = talk.messages.get(next)?.value;
    if (message?.role !== "tool") return undefined;
    if (message.callId === callId) return message.content;
  }
  return undefined;
}

/**
 * Give calls their results, and have the model go on.
 * @param {Talk} talk
 * @param {string} id the message with the calls
 * @param {string[]} results in the order of the calls
 */
export function answerCalls(talk, id, results) {
  const calls = talk.peek(id).calls ?? [];
  const path = talk.path.peek();
  let last = id;
  for (const next of path.slice(path.indexOf(id) + 1)) {
    if (talk.peek(next).role !== "tool") break;
    last = next;
  }
  const answered = new Set(path.map((one) => talk.peek(one).callId));
  calls.forEach((call, index) => {
    if (!answered.has(call.id)) last = talk.add(last, { role: "tool", callId: call.id, name: call.name, content: results[index] });
  });
  return announced([answer(talk, last)]);
}

/**
 * Cut an answer before one of its tokens, put another there and have the model go on: beside the answer that is there.
 * @param {Talk} talk
 * @param {string} id
 * @param {number} at the token's index
 * @param {{token: string, logprob: number, bytes: number[] | null}} other
 */
export function forkAt(talk, id, at, other) {
  const { parent, content, tokens = [], reasoning } = talk.peek(id);
  // What stands before the tokens, as of an answer that was begun by hand.
  const spelled = spell(tokens);
  const head = content.endsWith(spelled) ? content.slice(0, content.length - spelled.length) : "";
  const kept = [...tokens.slice(0, at), { ...other, top_logprobs: tokens[at].top_logprobs }];
  const outcome = { model: "", ...(head || reasoning ? {} : { tokens: kept.length }) };
  const made = talk.add(parent, { role: "assistant", content: head + spell(kept), tokens: kept, outcome, ...(reasoning ? { reasoning } : {}) });
  return announced([answer(talk, parent, { continues: made })]);
}

/** @param {{bytes: number[] | null}[]} tokens */
function spell(tokens) {
  return new TextDecoder().decode(new Uint8Array(tokens.flatMap(({ bytes }) => bytes ?? [])));
}
