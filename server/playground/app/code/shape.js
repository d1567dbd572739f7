/** Whether a body has the shape of a chat request, as far as the interface must rely on it. The rest the server checks. */
import { inside, Refusal } from "../core/json.js";

const ROLES = ["system", "developer", "user", "assistant", "tool", "function"];
const PARTS = ["text", "image_url"];

/**
 * @param {any} body
 * @param {Map<string, number>} places the offset of each part, by its path
 * @throws {Refusal} at the part that is of another shape
 */
export function checkBody(body, places) {
  /** @type {(ok: boolean, path: string, message: string) => asserts ok} */
  const must = (ok, path, message) => {
    if (!ok) throw new Refusal(path ? `${path}: ${message}` : message, places.get(path) ?? 0);
  };
  must(isObject(body), "", "The body must be an object");
  if ("prompt" in body && !("messages" in body)) must(false, "prompt", "this is a request for raw completions; the playground makes chats");
  must("messages" in body, "", "The body has no messages");
  must(Array.isArray(body.messages), "messages", "must be an array");
  body.messages.forEach((/** @type {any} */ message, /** @type {number} */ index) => checkMessage(message, inside("messages", index), must));
  for (const name of ["tools", "choice"]) must(body[name] == null || Array.isArray(body[name]), name, "must be an array");
  must(body.choice == null || body.choice.every((/** @type {any} */ text) => typeof text === "string"), "choice", "must hold texts alone");
  for (const name of ["model", "grammar"]) must(body[name] == null || typeof body[name] === "string", name, "must be a text");
  for (const name of ["response_format", "structured_outputs"]) must(body[name] == null || isObject(body[name]), name, "must be an object");
}

/**
 * @param {any} message
 * @param {string} path
 * @param {(ok: boolean, path: string, message: string) => void} must
 */
function checkMessage(message, path, must) {
  must(isObject(message), path, "must be an object");
  must(ROLES.includes(message.role), "role" in message ? inside(path, "role") : path, `the role must be one of ${ROLES.join(", ")}`);
  const at = inside(path, "content");
  const { content } = message;
  must(content == null || typeof content === "string" || Array.isArray(content), at, "must be a text or an array of parts");
  if (Array.isArray(content)) {
    content.forEach((part, index) => {
      const place = inside(at, index);
      must(isObject(part) && PARTS.includes(part.type), place, `a part must be of one of the types ${PARTS.join(", ")}`);
      if (part.type === "text") must(typeof part.text === "string", place, "must have a text");
      else must(typeof (isObject(part.image_url) ? part.image_url.url : part.image_url) === "string", place, "must have the address of an image");
    });
  }
  for (const name of ["reasoning", "tool_call_id"]) must(message[name] == null || typeof message[name] === "string", inside(path, name), "must be a text");
  must(message.tool_calls == null || (Array.isArray(message.tool_calls) && message.tool_calls.every(isObject)), inside(path, "tool_calls"), "must be an array of objects");
}

/** @param {unknown} value @returns {boolean} */
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
