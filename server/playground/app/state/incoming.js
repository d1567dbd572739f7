/**
 * Conversations from elsewhere. What comes in was written by anybody: only what is known of it is taken over, with ids of
 * its own, so that nothing that is kept is replaced. Pure but for the ids.
 */
import { newId } from "../core/ids.js";
import { newRecord } from "../talk/talk.js";
import { OWN_FIELDS } from "../talk/request.js";
import { noSettings } from "../talk/types.js";

/**
 * @typedef {import("../talk/types.js").Message} Message
 * @typedef {import("../talk/types.js").TalkRecord} TalkRecord
 * @typedef {{record: TalkRecord, messages: Message[]}} Kept
 */

/** Of the files that are written and read. */
export const VERSION = 1;
/** So many messages a conversation may have; with many more the page would be busy for minutes. */
const MOST_MESSAGES = 20_000;
/** So many columns stand beside a conversation. */
const MOST_BESIDE = 3;
const ROLES = ["system", "user", "assistant", "tool"];
const FORMATS = ["text", "json_object", "json_schema", "regex", "choice", "grammar"];
const IMAGE = /^data:image\/[a-z.+-]+;base64,/;

/**
 * @param {any} file
 * @returns {Kept[]}
 * @throws {TypeError} where it is no such file
 * @throws {RangeError} where it holds too much
 */
export function read(file) {
  const given = file?.headrace === VERSION ? list(file.talks).filter(isObject) : [];
  if (!given.length) throw new TypeError("This is no file of conversations");
  const count = Math.max(...given.map((talk) => list(talk.messages).length));
  if (count > MOST_MESSAGES) throw new RangeError(`A conversation of the file has ${count} messages; at most ${MOST_MESSAGES} are taken over`);
  /** @type {Map<string, string>} */
  const ids = new Map();
  /** @param {unknown} old */
  const renamed = (old) => {
    const key = String(old);
    const id = ids.get(key) ?? newId();
    ids.set(key, id);
    return id;
  };
  const taken = new Set();
  /** @template {{id: string}} One @param {One} one @returns {One} what says it is another that came before is one of its own */
  const own = (one) => (taken.has(one.id) ? { ...one, id: newId() } : (taken.add(one.id), one));
  const kept = given.map((talk) => {
    const record = own(cleanRecord(object(talk.record), renamed));
    const messages = list(talk.messages).filter(isObject).map((message) => own(cleanMessage(message, record.id, renamed)));
    return { record, messages: rooted(messages) };
  });
  return paired(kept);
}

/**
 * Messages of which each leads to the root: what follows itself, or what is not there, follows nothing.
 * @param {Message[]} messages
 */
function rooted(messages) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const sound = new Set();
  for (const message of messages) {
    /** @type {Set<Message>} */
    const way = new Set();
    for (let at = message; !sound.has(at); ) {
      way.add(at);
      const parent = byId.get(at.parent ?? "");
      if (!parent || way.has(parent)) {
        at.parent = null;
        break;
      }
      at = parent;
    }
    for (const one of way) sound.add(one);
  }
  return messages;
}

/**
 * Conversations whose columns are there, belong to one alone and are not too many; all others stand for themselves.
 * @param {Kept[]} kept
 */
function paired(kept) {
  const free = new Map(kept.filter(({ record }) => record.owner !== null).map(({ record }) => [record.id, record]));
  for (const { record } of kept) record.owner = null;
  for (const { record } of kept) {
    if (free.has(record.id)) continue;
    const columns = [...new Set(record.columns)].filter((id) => free.has(id)).slice(0, MOST_BESIDE);
    for (const id of columns) {
      /** @type {TalkRecord} */ (free.get(id)).owner = record.id;
      free.delete(id);
    }
    record.columns = columns;
  }
  for (const record of free.values()) record.columns = [];
  return kept;
}

/** @param {unknown} value */
const text = (value) => (typeof value === "string" ? value : "");

/** @param {unknown} value @returns {any[]} */
const list = (value) => (Array.isArray(value) ? value : []);

/** @param {unknown} value @returns {Record<string, any>} */
const object = (value) => (isObject(value) ? value : {});

/** @param {unknown} value @returns {value is Record<string, any>} */
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/**
 * @param {any} given
 * @param {(old: unknown) => string} renamed
 * @returns {TalkRecord}
 */
function cleanRecord(given, renamed) {
  const settings = object(given.settings);
  const format = object(settings.format);
  const chosen = Object.entries(object(given.chosen)).map(([parent, child]) => [parent && renamed(parent), renamed(child)]);
  return {
    ...newRecord({
      ...noSettings(),
      model: typeof settings.model === "string" ? settings.model : null,
      // What the page fills in itself must be what it shows: messages among the parameters would be sent in their place.
      params: Object.fromEntries(Object.entries(object(settings.params)).filter(([name]) => !OWN_FIELDS.has(name))),
      format: { kind: FORMATS.includes(format.kind) ? format.kind : "text", text: text(format.text), strict: format.strict !== false },
      tools: text(settings.tools),
    }),
    id: renamed(given.id),
    title: text(given.title).slice(0, 200),
    created: Number(given.created) || Date.now(),
    chosen: Object.fromEntries(chosen),
    columns: list(given.columns).map(renamed),
    owner: typeof given.owner === "string" ? renamed(given.owner) : null,
  };
}

/**
 * @param {any} given
 * @param {string} talk
 * @param {(old: unknown) => string} renamed
 * @returns {Message}
 */
function cleanMessage(given, talk, renamed) {
  const calls = list(given.calls).map((call) => ({ id: text(call?.id), name: text(call?.name), arguments: text(call?.arguments) }));
  const images = list(given.images).filter((url) => IMAGE.test(text(url)));
  const outcome = object(given.outcome);
  return {
    id: renamed(given.id),
    talk,
    parent: typeof given.parent === "string" ? renamed(given.parent) : null,
    order: Number(given.order) || 0,
    role: ROLES.includes(given.role) ? given.role : "user",
    content: text(given.content),
    state: ["stopped", "failed"].includes(given.state) ? given.state : "done",
    ...(images.length ? { images } : {}),
    ...(given.reasoning ? { reasoning: text(given.reasoning) } : {}),
    ...(calls.length ? { calls } : {}),
    ...(given.callId ? { callId: text(given.callId) } : {}),
    ...(given.name ? { name: text(given.name) } : {}),
    ...(given.outcome ? { outcome: cleanOutcome(outcome) } : {}),
  };
}

/**
 * @param {Record<string, any>} given
 * @returns {import("../talk/types.js").Outcome}
 */
function cleanOutcome(given) {
  /** @param {string} name */
  const number = (name) => (typeof given[name] === "number" ? { [name]: given[name] } : {});
  return {
    model: text(given.model),
    finish: given.finish ? text(given.finish) : null,
    ...number("tokens"), ...(given.before === null ? { before: null } : number("before")), ...number("promptTokens"), ...number("cachedTokens"), ...number("firstMs"), ...number("ms"),
  };
}
