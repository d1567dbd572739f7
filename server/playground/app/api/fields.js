/** The fields of a chat request, as the server's own description of its API tells them: so the two cannot drift. */

/**
 * One field of a request.
 * @typedef {object} Field
 * @property {string} name
 * @property {string} meaning one line
 * @property {string} range in words
 * @property {"supported" | "hint" | "partly" | "refused"} status what becomes of it
 * @property {"number" | "integer" | "boolean" | "text" | "choice" | "texts" | "numbers" | "json"} kind
 * @property {unknown} default what holds when it is absent, undefined where that is not one value
 * @property {number} [minimum]
 * @property {number} [maximum]
 * @property {boolean} [above] the minimum itself is excluded
 * @property {number} [maxLength]
 * @property {string[]} [options]
 */

/**
 * A node of a JSON Schema.
 * @typedef {{[keyword: string]: any}} Schema
 */

/** The default as a part of the meaning, which is shown by itself. */
const TOLD_BESIDE = /\. Default \S+$/;

/**
 * The fields of `POST /v1/chat/completions`, in the description's order.
 * @param {Schema} description the document of /openapi.json
 * @returns {Field[]}
 */
export function chatFields(description) {
  const { properties } = description.components.schemas.ChatCompletionRequest;
  return Object.entries(properties).map(([name, property]) => readField(name, property));
}

/**
 * @param {string} name
 * @param {Schema} property
 * @returns {Field}
 */
function readField(name, property) {
  const range = property["x-range"] ?? "";
  const meaning = (property.description ?? "").slice(0, -` Range: ${range}`.length).replace(/\.$/, "").replace(TOLD_BESIDE, "");
  const schema = (property.anyOf ?? [property]).find((/** @type {Schema} */ one) => one.type !== "null") ?? {};
  return {
    name,
    meaning,
    range,
    status: property["x-status"] ?? "supported",
    kind: kindOf(schema),
    default: property.default ?? undefined,
    minimum: schema.minimum ?? schema.exclusiveMinimum,
    maximum: schema.maximum,
    above: schema.exclusiveMinimum !== undefined,
    maxLength: schema.maxLength,
    options: schema.enum,
  };
}

/**
 * What a person types for such a value.
 * @param {Schema} schema
 * @returns {Field["kind"]}
 */
function kindOf(schema) {
  if (schema.enum) return "choice";
  if (["number", "integer", "boolean"].includes(schema.type)) return schema.type;
  if (schema.type === "string") return "text";
  const list = schema.type === "array" ? schema : schema.oneOf?.find((/** @type {Schema} */ one) => one.type === "array");
  if (list?.items?.type === "string") return "texts";
  if (list?.items?.type === "integer") return "numbers";
  if (schema.oneOf?.some((/** @type {Schema} */ one) => one.type === "string")) return "text";
  return "json";
}
