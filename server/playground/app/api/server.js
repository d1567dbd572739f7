/** What the page knows of the server: its models, their states, and the fields that it takes. */
import { computed, signal } from "../core/ui.js";
import { ask, locked, ServerError, Unreachable } from "./client.js";
import { chatFields } from "./fields.js";

/**
 * A model as /v1/models tells it. What is not loaded has only the first of these.
 * @typedef {object} Model
 * @property {string} id
 * @property {string} state `unloaded`, `loading`, `ready`, `restarting`, `asleep`, `unloading`, `failed` or `stopped`
 * @property {{stage: string, fraction: number | null}} [progress] while it loads
 * @property {number} [context_length]
 * @property {string} [architecture]
 * @property {string} [dtype]
 * @property {string} [device]
 * @property {number} [kv_cache_tokens]
 * @property {{input: string[], logprobs: boolean, tools: boolean, reasoning: boolean, structured_outputs: string[]}} [capabilities]
 * @property {Record<string, number>} [sampling_defaults]
 */

/** The models, in the server's order; the first answers requests that name none. */
export const models = signal(/** @type {Model[]} */ ([]));

/** The server's own description of its API, once it has come. */
const description = signal(/** @type {import("./fields.js").Schema | null} */ (null));

/** The fields of a chat request; empty until the description has come. */
export const fields = computed(() => (description.value ? chatFields(description.value) : []));

/**
 * What a request may be at most, as far as the server says it.
 * @typedef {object} Limits
 * @property {number} [request_bytes]
 * @property {number} [images] in one request
 * @property {number} [image_bytes] of one of them
 */
export const limits = computed(() => /** @type {Limits} */ (description.value?.["x-limits"] ?? {}));

/** How the page stands with the server. */
export const link = signal(/** @type {"connecting" | "connected" | "unreachable"} */ ("connecting"));

/** Why the server does not tell its models, where that is no matter of a key that is not given; else empty. */
export const refusal = signal("");

/** By name. */
export const modelsById = computed(() => new Map(models.value.map((model) => [model.id, model])));

/**
 * The model that settings ask for; the server's first if they name none.
 * @param {{model: string | null}} settings
 * @returns {Model | undefined}
 */
export function modelOf({ model }) {
  return model === null ? models.value[0] : modelsById.value.get(model);
}

/**
 * A model's name without who published it.
 * @param {string} id
 */
export const nameOf = (id) => id.slice(id.lastIndexOf("/") + 1);

/** @param {Model} model */
export function stateWords({ state, progress }) {
  if (state !== "loading" || !progress) return state;
  return progress.fraction === null ? progress.stage : `${progress.stage}, ${Math.round(progress.fraction * 100)} %`;
}

/**
 * Whether a model can be asked: one that is not loaded is, by being asked.
 * @param {Model | undefined} model
 */
export const takesRequests = (model) => link.value !== "unreachable" && ["ready", "yielding", "asleep", "unloaded"].includes(model?.state ?? "");

const SETTLED = ["ready", "asleep", "failed", "unloaded"];
const POLL_MS = 1000;
const REFUSED_POLL_MS = 5000;
let asking = false;
let timer = 0;

/** Ask for the models now, and again while something is about to change: a model loads, or the server is away. */
export async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    models.value = (await (await ask("v1/models")).json()).data;
    locked.value = false;
    refusal.value = "";
    description.value ??= await (await ask("openapi.json")).json();
    link.value = "connected";
  } catch (error) {
    // A proxy before a server that is away answers in its place.
    const isRefused = error instanceof ServerError && error.status < 500;
    link.value = isRefused ? "connected" : "unreachable";
    refusal.value = isRefused && error.status !== 401 ? error.message : "";
    if (!(error instanceof ServerError || error instanceof Unreachable || error instanceof SyntaxError)) throw error;
  } finally {
    asking = false;
  }
  const settled = link.value === "connected" && models.value.every((model) => SETTLED.includes(model.state));
  if (refusal.value) timer = window.setTimeout(refresh, REFUSED_POLL_MS);
  else if (!settled) timer = window.setTimeout(refresh, POLL_MS);
}
