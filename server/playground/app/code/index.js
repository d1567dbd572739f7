/** Requests as code, and code as requests. Pure functions. */
import { lineAt, Refusal } from "../core/json.js";
import { curl } from "./curl.js";
import { withFiles } from "./images.js";
import { huggingfaceInference, openaiNode } from "./javascript.js";
import { bodyOf } from "./parse.js";
import { huggingfaceHub, openaiPython } from "./python.js";

/**
 * @typedef {object} Target what a program is for
 * @property {string} id one of `TARGETS`
 * @property {string} baseUrl the server's address with `/v1`
 * @property {boolean} stream
 * @property {string} [model] for libraries that want one named, where the request names none
 * @property {string} [key] the environment variable that holds the API key, if the server wants one
 */

/**
 * Languages and libraries. `code` says how the text is coloured; what must be installed wants a model named.
 * @type {{id: string, label: string, code: string, install: string, write: (request: Record<string, any>, target: Target) => string}[]}
 */
const WRITERS = [
  { id: "python-huggingface", label: "Python, huggingface_hub", code: "python", install: "pip install huggingface_hub", write: huggingfaceHub },
  { id: "python-openai", label: "Python, openai", code: "python", install: "pip install openai", write: openaiPython },
  { id: "javascript-huggingface", label: "JavaScript, @huggingface/inference", code: "javascript", install: "npm install @huggingface/inference", write: huggingfaceInference },
  { id: "javascript-openai", label: "JavaScript, openai", code: "javascript", install: "npm install openai", write: openaiNode },
  { id: "curl", label: "curl", code: "bash", install: "", write: curl },
];

/** What a request can be written as. */
export const TARGETS = WRITERS.map(({ id, label, code, install }) => ({ id, label, code, install }));

/**
 * The text of a program that sends a request: exactly this body, but for `stream`, which is the target's.
 * @param {Record<string, any>} request
 * @param {Target} target
 * @returns {string}
 */
export function snippets(request, target) {
  const writer = WRITERS.find(({ id }) => id === target.id) ?? WRITERS[0];
  const { stream: _, stream_options: options, ...body } = request;
  const named = writer.install && target.model && !body.model ? { model: target.model, ...body } : body;
  const streaming = target.stream ? { stream: true, ...(options ? { stream_options: options } : {}) } : {};
  return writer.write({ ...named, ...streaming }, target);
}

/**
 * The body of a request that a curl command or a JSON text holds.
 * @param {string} text
 * @returns {{request: Record<string, any>} | {error: string, line: number}} `line` of the text, from 1
 */
export function parse(text) {
  try {
    return { request: bodyOf(text) };
  } catch (error) {
    if (error instanceof Refusal) return { error: error.message, line: lineAt(text, error.at) };
    throw error;
  }
}

/**
 * The files that the programs read, beside themselves.
 * @param {Record<string, any>} request
 */
export const picturesOf = (request) => withFiles(request, () => "").pictures;
