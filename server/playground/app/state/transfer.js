/** Conversations as JSON: files that keep every branch, and links. */
import { Talk } from "../talk/talk.js";
import { read, VERSION } from "./incoming.js";
import { adopt, keep, listed, save, show, showTalks } from "./library.js";
import { readMessages, readOne } from "./database.js";

/**
 * @typedef {import("./incoming.js").Kept} Kept
 */

/** Above so many characters a link is no longer taken everywhere. */
export const LONGEST_LINK = 32_000;
/** So many bytes of JSON are taken out of a link; small ones of somebody's making can hold a thousand times their size. */
const MOST_IN_A_LINK = 8_000_000;

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
 * @throws {SyntaxError | TypeError | RangeError} where it is no such file, or holds too much
 */
export async function imported(text) {
  const talks = read(JSON.parse(text));
  await keep(talks);
  const first = talks.find(({ record }) => record.owner === null);
  if (first) await show(first.record.id);
  return talks.filter(({ record }) => record.owner === null).length;
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
  let size = 0;
  const bounded = new TransformStream({
    transform(chunk, controller) {
      size += chunk.length;
      if (size > MOST_IN_A_LINK) throw new RangeError("The link holds too much");
      controller.enqueue(chunk);
    },
  });
  const stream = new Blob([bytes]).stream().pipeThrough(/** @type {any} */ (through)).pipeThrough(bounded);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
