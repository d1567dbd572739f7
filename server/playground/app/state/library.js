/** All conversations: opened, kept, and the same in every tab of the browser. */
import { batch, computed, signal } from "../core/ui.js";
import { newRecord, Talk } from "../talk/talk.js";
import { noSettings } from "../talk/types.js";
import { runs } from "../talk/runs.js";
import { readAll, readMessages, readOne, write } from "./database.js";
import { notify } from "./notices.js";

/**
 * @typedef {import("../talk/types.js").TalkRecord} TalkRecord
 * @typedef {import("../talk/types.js").Message} Message
 */

/** How long a change may wait before it is saved; so of an answer that comes, at most this much is lost. */
const SAVE_AFTER_MS = 1000;

/** Every conversation that is kept, the newest first, columns of others among them. */
export const records = signal(/** @type {TalkRecord[]} */ ([]));

/** Those that the history shows. */
export const listed = computed(() => records.value.filter((record) => record.owner === null));

/** What is shown: a conversation and those that are compared with it. */
export const columns = signal([new Talk(newRecord())]);

/** The column that the inspector speaks of. */
export const focused = signal(0);

/** The conversation that the inspector speaks of. */
export const current = computed(() => columns.value[Math.min(focused.value, columns.value.length - 1)]);

/** Whether the browser keeps nothing. */
export const forgets = signal(false);

/** @type {Map<string, Talk>} */
const open = new Map();
const channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("headrace-talks");
let saveTimer = 0;
/** Whether the page is on its way out: what breaks off then, as answers do, is no failure to be kept. */
let leaves = false;
/** The conversation that the address names and that is not known here: another tab may have it, and not saved it yet. */
let wanted = "";
/** @type {Promise<void>} */
let saving = Promise.resolve();

/**
 * Let a conversation be saved when it changes.
 * @param {Talk} talk
 */
export function adopt(talk) {
  open.set(talk.id, talk);
  talk.onChange = () => {
    const isNew = isKept(talk) && !records.peek().some(({ id }) => id === talk.id);
    if (isNew) clearTimeout(saveTimer); // the first time at once, so that the address names it and other tabs find it
    saveTimer = (!isNew && saveTimer) || window.setTimeout(save, isNew ? 0 : SAVE_AFTER_MS);
  };
  return talk;
}
adopt(columns.value[0]);

/** Save what has changed since the last time. */
export function save() {
  clearTimeout(saveTimer);
  saveTimer = 0;
  if (leaves) return saving;
  const talks = [...open.values()].filter((talk) => talk.changes.any && isKept(talk));
  const writes = talks.flatMap(writesOf);
  const told = talks.map((talk) => talk.id);
  if (!writes.length) return saving;
  if (told.includes(columns.peek()[0].id)) nameShown();
  saving = saving
    .then(() => write(writes))
    .then(() => channel?.postMessage({ changed: told }))
    .catch((error) => {
      forgets.value = true;
      console.warn("The browser keeps no conversations:", error);
    });
  return saving;
}

/** @param {import("../talk/types.js").Draft} draft */
const isBlank = ({ text, images }) => text === "" && images.length === 0;

/**
 * One that nothing was said in yet is not kept, unless it has a draft.
 * @param {Talk} talk
 */
function isKept(talk) {
  const { draft } = talk.record.peek();
  return talk.messages.size > 0 || talk.changes.removed.size > 0 || !isBlank(draft) || talk.record.peek().owner !== null || talk.record.peek().columns.length > 0;
}

/**
 * @param {Talk} talk
 * @returns {import("./database.js").Write[]}
 */
function writesOf(talk) {
  const { changes } = talk;
  const record = talk.record.peek();
  /** @type {import("./database.js").Write[]} */
  const writes = [...changes.removed].map((id) => ({ store: "messages", remove: id }));
  for (const id of changes.messages) {
    if (talk.messages.has(id)) writes.push({ store: "messages", put: talk.peek(id) });
  }
  // Also with a message, so that none is without its conversation.
  writes.push({ store: "talks", put: record });
  if (changes.record || !records.peek().some(({ id }) => id === record.id)) noteRecord(record);
  changes.record = false;
  changes.messages.clear();
  changes.removed.clear();
  return writes;
}

/** @param {TalkRecord} record */
function noteRecord(record) {
  const others = records.peek().filter(({ id }) => id !== record.id);
  records.value = [record, ...others].sort((a, b) => b.updated - a.updated);
}

/** Read what is kept, and show the conversation that the address names. */
export async function start() {
  window.addEventListener("pagehide", () => (save(), (leaves = true)));
  window.addEventListener("pageshow", () => (leaves = false));
  document.addEventListener("visibilitychange", () => document.hidden && void save());
  channel?.addEventListener("message", ({ data }) => void hear(data));
  window.addEventListener("hashchange", () => void showNamed());
  try {
    records.value = (await readAll("talks")).sort((a, b) => b.updated - a.updated);
  } catch {
    forgets.value = true;
  }
  await showNamed();
}

/** Show what the address names; the other tabs are asked to save it first, since they may be writing it. */
async function showNamed() {
  const letters = /^#share=(.+)$/.exec(location.hash)?.[1];
  if (letters) {
    const { openLink } = await import("./transfer.js");
    return openLink(letters).catch(() => notify("This link holds no conversation"));
  }
  const id = new URLSearchParams(location.hash.slice(1)).get("talk");
  if (!id || columns.peek()[0].id === id) return;
  wanted = id;
  channel?.postMessage({ wanted });
  await show(id);
}

/**
 * A conversation that is kept, open.
 * @param {string} id
 * @returns {Promise<Talk | null>}
 */
async function load(id) {
  const known = open.get(id);
  if (known) return known;
  const [record, messages] = await Promise.all([readOne("talks", id), readMessages(id)]);
  if (!record) return null;
  const talk = new Talk(upgraded(record), messages);
  adopt(talk);
  for (const message of messages) if (message.state === "writing") settle(talk, message.id);
  return talk;
}

/**
 * A record of any age, with all that one has today.
 * @param {TalkRecord} record
 * @returns {TalkRecord}
 */
export function upgraded(record) {
  return { ...newRecord(), ...record, settings: { ...noSettings(), ...record.settings } };
}

/**
 * An answer that was being written when it was saved: by another tab, which goes on saving it, or by a page that is
 * gone. If nothing comes for a while, it is the latter.
 * @param {Talk} talk
 * @param {string} id
 */
function settle(talk, id) {
  const { content, reasoning } = talk.peek(id);
  setTimeout(() => {
    if (!talk.messages.has(id) || runs.peek().has(id)) return;
    const now = talk.peek(id);
    if (now.state !== "writing") return;
    if (now.content === content && now.reasoning === reasoning) talk.change(id, { state: "stopped" });
    else settle(talk, id);
  }, 4 * SAVE_AFTER_MS);
}

/**
 * Show a conversation, with its columns.
 * @param {string} id
 */
export async function show(id) {
  const talk = await load(id);
  if (!talk) return;
  wanted = "";
  const others = await Promise.all(talk.record.peek().columns.map(load));
  showTalks([talk, ...others.filter((other) => other !== null)]);
}

/**
 * @param {Talk[]} talks
 * @param {{named?: boolean}} [options] whether the address is to name them
 */
export function showTalks(talks, { named = true } = {}) {
  batch(() => {
    columns.value = talks;
    focused.value = 0;
  });
  if (named) nameShown();
}

/** Let the address name what is shown, so that a reload shows it again. */
function nameShown() {
  const name = `#talk=${columns.peek()[0].id}`;
  if (location.hash !== name) history.replaceState(null, "", name);
}

/**
 * Begin a conversation, with the settings of the one before.
 * @param {import("../talk/types.js").Settings} [settings]
 */
export function begin(settings = columns.peek()[0].settings.peek()) {
  const [shown] = columns.peek();
  if (shown.messages.size === 0 && isBlank(shown.record.peek().draft)) return shown;
  const talk = adopt(new Talk(newRecord(structuredClone(settings))));
  showTalks([talk]);
  return talk;
}

/**
 * Forget a conversation; a notice lets it be brought back.
 * @param {string} id
 */
export async function forget(id) {
  const talk = await load(id);
  if (!talk) return;
  const parts = [talk, ...(await Promise.all(talk.record.peek().columns.map(load)))].filter((part) => part !== null);
  const kept = parts.map((part) => ({ record: part.record.peek(), messages: [...part.messages.values()].map((one) => one.peek()) }));
  for (const part of parts) {
    for (const [key, run] of runs.peek()) if (run.talk === part) run.abort.abort(key);
    open.delete(part.id);
    part.onChange = () => {};
  }
  records.value = records.peek().filter((record) => !parts.some((part) => part.id === record.id));
  if (columns.peek().some((shown) => parts.includes(shown))) {
    const settings = talk.settings.peek();
    showTalks([adopt(new Talk(newRecord(structuredClone(settings))))]);
  }
  await erase(kept);
  notify("Conversation deleted", { label: "Undo", act: () => void keep(kept).then(() => show(id)) });
}

/**
 * Forget a conversation that was a column, without a word.
 * @param {Talk} talk
 */
export function forgetQuietly(talk) {
  for (const run of runs.peek().values()) if (run.talk === talk) run.abort.abort();
  open.delete(talk.id);
  talk.onChange = () => {};
  records.value = records.peek().filter((record) => record.id !== talk.id);
  void erase([{ record: talk.record.peek(), messages: [...talk.messages.values()].map((one) => one.peek()) }]);
}

/** @param {{record: TalkRecord, messages: Message[]}[]} kept */
async function erase(kept) {
  await write(kept.flatMap(({ record, messages }) => [
    { store: /** @type {const} */ ("talks"), remove: record.id },
    ...messages.map((message) => ({ store: /** @type {const} */ ("messages"), remove: message.id })),
  ])).catch(() => {});
  channel?.postMessage({ removed: kept.map(({ record }) => record.id) });
}

/**
 * Keep conversations that were not open.
 * @param {{record: TalkRecord, messages: Message[]}[]} kept
 */
export async function keep(kept) {
  for (const { record } of kept) noteRecord(record);
  await write(kept.flatMap(({ record, messages }) => [
    { store: /** @type {const} */ ("talks"), put: record },
    ...messages.map((message) => ({ store: /** @type {const} */ ("messages"), put: message })),
  ])).catch(() => {
    for (const { record, messages } of kept) adopt(new Talk(record, messages));
  });
  channel?.postMessage({ changed: kept.map(({ record }) => record.id) });
}

/**
 * What another tab has done, or wants to see.
 * @param {{changed?: string[], removed?: string[], wanted?: string}} told
 */
async function hear({ changed = [], removed = [], wanted: asked }) {
  if (asked && open.has(asked)) await save().then(() => channel?.postMessage({ changed: [asked] }));
  records.value = records.peek().filter((record) => !removed.includes(record.id));
  for (const id of changed) {
    const [record, messages] = await Promise.all([readOne("talks", id), readMessages(id)]);
    if (!record) continue;
    noteRecord(upgraded(record));
    open.get(id)?.merge(upgraded(record), messages);
    const [shown] = columns.peek();
    if (id === wanted && !shown.messages.size && isBlank(shown.record.peek().draft)) await show(id);
  }
}
