/** What the server does, from its metrics: asked for in short requests, and only while the page is looked at. */
import { computed, signal } from "../core/ui.js";
import { apiKey, ask, keyWanted, ServerError } from "./client.js";
import { link } from "./server.js";

const POLL_MS = 2000;
/** Ten minutes. */
const MOST_SAMPLES = 300;

/**
 * The server at one moment, all models together.
 * @typedef {object} Sample
 * @property {number} at ms of `performance.now()`
 * @property {number} running
 * @property {number} waiting
 * @property {number} kv share of the KV cache that running requests own, 0 to 1
 * @property {number} tokens generated since the server's start
 * @property {number} rate tokens a second since the sample before
 * @property {Record<string, Record<string, number>>} models by model: the series without their prefix
 */

export const samples = signal(/** @type {Sample[]} */ ([]));

/** Why there are none, where the server keeps them from this key; else empty. */
export const barred = signal("");

/** The last of them. */
export const now = computed(() => samples.value.at(-1));

const LINE = /^headrace_(\w+)\{([^}]*)\} (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/**
 * @param {string} text in Prometheus' format
 * @returns {Record<string, Record<string, number>>} by model; of KV blocks with the state behind the name
 */
export function readMetrics(text) {
  /** @type {Record<string, Record<string, number>>} */
  const models = {};
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...found[2].matchAll(LABEL)].map(([, name, value]) => [name, value.replace(/\\(.)/g, (_, one) => (one === "n" ? "\n" : one))]));
    if (labels.model === undefined) continue;
    (models[labels.model] ??= {})[labels.state ? `${found[1]}_${labels.state}` : found[1]] = Number(found[3]);
  }
  return models;
}

/** Look at the server for as long as the page is open; gives back what ends it. */
export function watchServer() {
  let timer = 0;
  let asked = apiKey.peek();
  const look = async () => {
    if (asked !== apiKey.peek()) barred.value = ""; // another key may be allowed to
    asked = apiKey.peek();
    if (!document.hidden && link.peek() === "connected" && !keyWanted.peek() && !barred.peek()) {
      await sample().catch((error) => {
        if (error instanceof ServerError && error.status === 403) barred.value = error.message;
      });
    }
    timer = window.setTimeout(look, POLL_MS);
  };
  void look();
  return () => clearTimeout(timer);
}

async function sample() {
  const models = readMetrics(await (await ask("metrics")).text());
  const at = performance.now();
  /** @param {string} name */
  const sum = (name) => Object.values(models).reduce((total, series) => total + (series[name] ?? 0), 0);
  const before = samples.peek().at(-1);
  const tokens = sum("generation_tokens_total");
  const rate = before ? Math.max(0, tokens - before.tokens) / ((at - before.at) / 1000) : 0;
  const total = sum("kv_blocks_total");
  const entry = { at, running: sum("requests_running"), waiting: sum("requests_waiting"), kv: total ? sum("kv_blocks_owned") / total : 0, tokens, rate, models };
  samples.value = [...samples.peek(), entry].slice(-MOST_SAMPLES);
}
