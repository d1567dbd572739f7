/** From a conversation to the body of a chat request; `given.js` is the way back. Pure functions. */

/**
 * @typedef {import("./types.js").Message} Message
 * @typedef {import("./types.js").Settings} Settings
 * @typedef {Record<string, any>} Body
 */

/** Fields that the page fills in itself, from what stands elsewhere on it. */
export const OWN_FIELDS = new Set([
  "messages", "model", "stream", "stream_options", "add_generation_prompt", "continue_final_message",
  "tools", "response_format", "grammar", "choice", "structured_outputs", "functions", "function_call",
]);

/**
 * The body that asks for what comes after these messages: nothing is in it that nobody set, but for the stream, whose
 * every event is to have the counts so far, so that those of an answer that is cut short are right as well.
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
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
}

/**
 * The same for a program: without the counts in every event, which not every server takes and no program needs.
 * @param {Body} body
 * @returns {Body}
 */
export function forPrograms({ stream_options: { continuous_usage_stats: _, ...options }, ...body }) {
  return { ...body, stream_options: options };
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
