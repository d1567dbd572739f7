/**
 * Conversations as JSON: files that keep every branch, and links.
 *
 * What comes in was written by anybody. Only what is known of it is taken over, with ids of its own, so that nothing
 * that is kept is replaced; and nothing is sent before a person asks for it.
 */
import { newId } from "../core/ids.js";
import { newRecord, Talk } from "../talk/talk.js";
import { noSettings } from "../talk/types.js";
import { adopt, keep, listed, save, show, showTalks } from "./library.js";
import { readMessages, readOne } from "./database.js";

/**
 * @typedef {import("../talk/types.js").Message} Message
 * @typedef {import("../talk/types.js").TalkRecord} TalkRecord
 * @typedef {{record: TalkRecord, messages: Message[]}} Kept
 */

const VERSION = 1;
/** Above so many characters a link is no longer taken everywhere. */
export const LONGEST_LINK = 32_000;
const ROLES = ["system", "user", "assistant", "tool"];
const FORMATS = ["text", "json_object", "json_schema", "regex", "choice", "grammar"];
const IMAGE = /^data:image\/[a-z.+-]+;base64,/;

/**
 * The file of some conversations, or of all.
 * @param {Talk[]} [talks]
 * @returns {Promise<string>}
 */
export async function exported(talks) {
  if (talks) return asJson(talks.map(kept));
  await save();
  const ids = listed.peek().flatMap((record) => [record.id, ...record.columns]);
  const read = await Promise.all(ids.map(async (id) => ({ record: await readOne("talks", id), messages: await readMessages(id) })));
  return asJson(read.filter(({ record }) => record));
}

/** @param {Talk} talk @returns {Kept} */
const kept = (talk) => ({ record: talk.record.peek(), messages: [...talk.messages.values()].map((one) => one.peek()) });

/** @param {Kept[]} talks */
const asJson = (talks) => JSON.stringify({ headrace: VERSION, talks }, null, 1);

/**
 * Take over the conversations of a file; how many.
 * @param {string} text
 * @throws {SyntaxError | TypeError} where it is no such file
 */
export async function imported(text) {
  const talks = read(JSON.parse(text));
  await keep(talks);
  const first = talks.find(({ record }) => record.owner === null);
  if (first) await show(first.record.id);
  return talks.filter(({ record }) => record.owner === null).length;
}

/**
 * @param {any} file
 * @returns {Kept[]}
 */
function read(file) {
  if (file?.headrace !== VERSION || !Array.isArray(file.talks) || !file.talks.length) throw new TypeError("This is no file of conversations");
  /** @type {Map<string, string>} */
  const ids = new Map();
  /** @param {unknown} old */
  const renamed = (old) => {
    const key = String(old);
    const id = ids.get(key) ?? newId();
    ids.set(key, id);
    return id;
  };
  return file.talks.map((/** @type {any} */ talk) => {
    const record = cleanRecord(talk?.record ?? {}, renamed);
    const messages = (Array.isArray(talk?.messages) ? talk.messages : []).map((/** @type {any} */ message) => cleanMessage(message, record.id, renamed));
    return { record, messages };
  });
}

/** @param {unknown} value */
const text = (value) => (typeof value === "string" ? value : "");

/** @param {unknown} value @returns {any[]} */
const list = (value) => (Array.isArray(value) ? value : []);

/** @param {unknown} value @returns {Record<string, any>} */
const object = (value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? value : {});

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
      params: object(settings.params),
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
    ...number("tokens"), ...number("promptTokens"), ...number("cachedTokens"), ...number("firstMs"), ...number("ms"),
  };
}

/**
 * A link that holds what is shown of a conversation, without its key, its images and its other branches.
 * @param {Talk} talk
 * @returns {Promise<string>}
 */
export async function linkOf(talk) {
  const record = { ...talk.record.peek(), chosen: {}, columns: [], owner: null, draft: undefined };
  const messages = talk.shown().map(({ id, parent, order, role, content, calls, callId, name }) => ({ id, parent, order, role, content, calls, callId, name }));
  const bytes = await piped(new TextEncoder().encode(JSON.stringify({ headrace: VERSION, talks: [{ record, messages }] })), new CompressionStream("deflate-raw"));
  const letters = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  const address = new URL(document.baseURI);
  address.hash = `share=${letters.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
  return address.href;
}

/**
 * Show the conversation of a link. It is kept, with all that it holds, once something is said in it or changed.
 * @param {string} letters what stands behind `share=`
 * @throws {Error} where it is no such link
 */
export async function openLink(letters) {
  const binary = atob(letters.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
  const json = new TextDecoder().decode(await piped(bytes, new DecompressionStream("deflate-raw")));
  const [{ record, messages }] = read(JSON.parse(json));
  const talk = adopt(new Talk({ ...record, owner: null, columns: [] }, messages));
  const { onChange } = talk;
  talk.onChange = () => {
    for (const { id } of messages) if (talk.messages.has(id)) talk.changes.messages.add(id);
    talk.onChange = onChange;
    onChange();
  };
  // The address stays the link until then, so that a reload shows it again.
  showTalks([talk], { named: false });
}

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {CompressionStream | DecompressionStream} through
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
async function piped(bytes, through) {
  const stream = new Blob([bytes]).stream().pipeThrough(/** @type {any} */ (through));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
