/** From a conversation to the body of a chat request, and back. Pure functions. */
import { noSettings } from "./types.js";

/**
 * @typedef {import("./types.js").Message} Message
 * @typedef {import("./types.js").Settings} Settings
 * @typedef {Record<string, any>} Body
 */

/** Fields that the page fills in itself, from what stands elsewhere on it. */
export const OWN_FIELDS = new Set([
  "messages", "model", "stream", "stream_options", "add_generation_prompt", "continue_final_message",
  "tools", "response_format", "grammar", "choice", "functions", "function_call",
]);

/**
 * The body that asks for what comes after these messages: nothing is in it that nobody set, but for the stream.
 * @param {Settings} settings
 * @param {Message[]} messages
 * @param {{continues?: boolean}} [options] `continues` the last message in place of answering it
 * @returns {Body}
 * @throws {SyntaxError} where a definition of tools or a schema is no JSON
 */
export function requestOf(settings, messages, { continues = false } = {}) {
  const { model, params, format, tools } = settings;
  return {
    ...(model ? { model } : {}),
    messages: messages.map(plainMessage),
    ...params,
    ...formatFields(format),
    ...(tools.trim() ? { tools: parsed(tools, "Tools") } : {}),
    ...(continues ? { continue_final_message: true, add_generation_prompt: false } : {}),
    stream: true,
    stream_options: { include_usage: true },
  };
}

/**
 * A message in OpenAI's shape.
 * @param {Pick<Message, "role" | "content"> & Partial<Message>} message
 * @returns {Body}
 */
export function plainMessage({ role, content, images, reasoning, calls, callId, name }) {
  if (role === "tool") return { role, tool_call_id: callId ?? "", ...(name ? { name } : {}), content };
  if (images?.length) {
    const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
    return { role, content: content ? [...parts, { type: "text", text: content }] : parts };
  }
  return {
    role,
    content: calls?.length && !content ? null : content,
    ...(reasoning ? { reasoning } : {}),
    ...(calls?.length ? { tool_calls: calls.map(plainCall) } : {}),
  };
}

/** @param {import("./types.js").Call} call */
function plainCall({ id, name, arguments: text }) {
  return { id, type: "function", function: { name, arguments: text } };
}

/**
 * The fields that hold an answer to a format.
 * @param {Settings["format"]} format
 * @returns {Body}
 */
export function formatFields({ kind, text, strict }) {
  if (kind === "json_object") return { response_format: { type: "json_object" } };
  if (kind === "text" || !text.trim()) return {};
  switch (kind) {
    case "json_schema":
      return { response_format: schemaFormat(parsed(text, "The schema"), strict) };
    case "regex":
      return { response_format: { type: "regex", value: text } };
    case "choice":
      return { choice: text.split("\n").filter((line) => line !== "") };
    default:
      return { grammar: text };
  }
}

/**
 * What was typed as a schema: the schema itself, or the whole `response_format` in any of its spellings.
 * @param {any} value
 * @param {boolean} strict
 */
function schemaFormat(value, strict) {
  const known = ["json_schema", "json", "regex", "json_object", "text"];
  const isWhole = value !== null && typeof value === "object" && known.includes(value.type);
  const holdsSchema = isWhole && ["json_schema", "value", "schema"].some((key) => key in value);
  if (holdsSchema) return value;
  return { type: "json_schema", json_schema: { name: "answer", strict, schema: value } };
}

/**
 * @param {string} text
 * @param {string} what
 */
function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(`${what}: ${error instanceof Error ? error.message : "no JSON"}`);
  }
}

/**
 * The interface for a body: settings, and messages without places.
 * @param {Body} body
 * @returns {{settings: Settings, messages: (Partial<Message> & Pick<Message, "role">)[]}}
 */
export function fromRequest(body) {
  const settings = noSettings();
  settings.model = body.model ?? null;
  for (const [name, value] of Object.entries(body)) {
    if (!OWN_FIELDS.has(name) && value !== null) settings.params[name] = value;
  }
  if (body.tools) settings.tools = JSON.stringify(body.tools, null, 2);
  if (body.grammar) settings.format = { kind: "grammar", text: body.grammar, strict: true };
  else if (body.choice) settings.format = { kind: "choice", text: body.choice.join("\n"), strict: true };
  else if (body.response_format) settings.format = formatOf(body.response_format);
  return { settings, messages: (body.messages ?? []).map(messageOf) };
}

/**
 * @param {any} given
 * @returns {Settings["format"]}
 */
function formatOf(given) {
  if (given.type === "json_object" || given.type === "text") return { kind: given.type, text: "", strict: true };
  if (given.type === "regex") return { kind: "regex", text: given.value ?? given.regex ?? "", strict: true };
  const { json_schema: openai } = given;
  if (openai?.schema) return { kind: "json_schema", text: JSON.stringify(openai.schema, null, 2), strict: openai.strict === true };
  return { kind: "json_schema", text: JSON.stringify(given, null, 2), strict: true };
}

/**
 * @param {any} given
 * @returns {Partial<Message> & Pick<Message, "role">}
 */
function messageOf(given) {
  const role = given.role === "developer" ? "system" : given.role === "function" ? "tool" : given.role;
  const parts = Array.isArray(given.content) ? given.content : [{ type: "text", text: given.content ?? "" }];
  const images = parts.filter((/** @type {any} */ part) => part.type === "image_url").map((/** @type {any} */ part) => part.image_url.url ?? part.image_url);
  const content = parts.filter((/** @type {any} */ part) => part.type === "text").map((/** @type {any} */ part) => part.text).join("\n");
  const calls = given.tool_calls?.map((/** @type {any} */ call) => ({
    id: call.id,
    name: call.function?.name ?? "",
    arguments: typeof call.function?.arguments === "string" ? call.function.arguments : JSON.stringify(call.function?.arguments ?? {}),
  }));
  return {
    role,
    content,
    ...(images.length ? { images } : {}),
    ...(given.reasoning ? { reasoning: given.reasoning } : {}),
    ...(calls?.length ? { calls } : {}),
    ...(given.tool_call_id ? { callId: given.tool_call_id } : {}),
    ...(role === "tool" && given.name ? { name: given.name } : {}),
  };
}
