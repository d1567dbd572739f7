/** From the body of a chat request to a conversation; `request.js` is the way back. Pure functions. */
import { OWN_FIELDS } from "./request.js";
import { noSettings } from "./types.js";

/**
 * @typedef {import("./types.js").Message} Message
 * @typedef {import("./types.js").Settings} Settings
 * @typedef {Record<string, any>} Body
 */

/** Fields that a request from elsewhere may have, and for which the page has no place. */
export const UNSHOWN_FIELDS = ["functions", "function_call", "add_generation_prompt", "continue_final_message"];

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
  else if (body.choice) settings.format = choiceOf(body.choice);
  else if (body.response_format) settings.format = formatOf(body.response_format);
  else if (body.structured_outputs) settings.format = formatOfVllm(body.structured_outputs);
  return { settings, messages: (body.messages ?? []).map(messageOf) };
}

/**
 * Texts to choose from stand in lines of their own; those that have line ends or are empty are a grammar that says the same.
 * @param {string[]} texts
 * @returns {Settings["format"]}
 */
function choiceOf(texts) {
  if (texts.every((text) => text && !text.includes("\n"))) return { kind: "choice", text: texts.join("\n"), strict: true };
  return { kind: "grammar", text: `start: ${texts.map((text) => JSON.stringify(text)).join(" | ")}`, strict: true };
}

/**
 * @param {any} given
 * @returns {Settings["format"]}
 */
function formatOf(given) {
  if (given.type === "json_object" || given.type === "text") return { kind: given.type, text: "", strict: true };
  if (given.type === "regex") return { kind: "regex", text: asText(given.value ?? given.regex ?? ""), strict: true };
  const { json_schema: openai } = given;
  if (openai?.schema) return { kind: "json_schema", text: JSON.stringify(openai.schema, null, 2), strict: openai.strict === true };
  return { kind: "json_schema", text: JSON.stringify(given, null, 2), strict: true };
}

/**
 * vLLM's name for the same.
 * @param {any} given
 * @returns {Settings["format"]}
 */
function formatOfVllm({ json, regex, choice, grammar }) {
  if (grammar) return { kind: "grammar", text: asText(grammar), strict: true };
  if (Array.isArray(choice)) return choiceOf(choice.map(asText));
  if (regex) return { kind: "regex", text: asText(regex), strict: true };
  return json ? { kind: "json_schema", text: typeof json === "string" ? json : JSON.stringify(json, null, 2), strict: true } : { kind: "json_object", text: "", strict: true };
}

/** @param {unknown} value */
const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));

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
