/** Answers as they come. They belong to their conversation, whatever the page shows meanwhile. */
import { inFrame } from "../core/pace.js";
import { ask, ServerError } from "../api/client.js";
import { readEvents } from "../api/events.js";
import { modelOf, refresh } from "../api/server.js";
import { addPiece, nothing } from "./assemble.js";
import { requestOf } from "./request.js";
import { runs } from "./runs.js";
import { takeSlot } from "./slots.js";

/**
 * @typedef {import("./talk.js").Talk} Talk
 * @typedef {import("./assemble.js").Assembled} Assembled
 *
 * @typedef {object} Trace what crossed the wire for one answer
 * @property {Record<string, any>} request
 * @property {number} began
 * @property {[string, string][]} headers
 * @property {{at: number, text: string}[]} events `at` in ms since `began`
 */

/** By message, for the answers of this visit. */
export const traces = new Map();

const MOST_TRACES = 40;
const HIDDEN_FLUSH_MS = 250;
/** After which a model that a request has loaded is seen to load. */
const LOADING_MS = 300;

/**
 * Answer the last message of the path, or continue it.
 * @param {Talk} talk
 * @param {string | null} parent the message to answer
 * @param {{continues?: string}} [options] the message to continue, which is then the last of the prompt
 * @returns {Promise<void>} when it has ended, in whatever way: how, the message says
 */
export async function answer(talk, parent, { continues } = {}) {
  const last = continues ?? parent;
  const path = talk.path.peek();
  const prompt = path.slice(0, last === null ? 0 : path.indexOf(last) + 1).map((id) => talk.peek(id));
  const settings = talk.settings.peek();
  const id = continues ?? talk.add(parent, { role: "assistant", state: "writing" });
  const before = continues ? { before: lengthOf(talk.peek(id).outcome) } : {};
  talk.change(id, { state: "writing", outcome: { model: settings.model ?? "", ...before } });
  const run = new Running(talk, id, parent);
  if (modelOf(settings)?.state === "unloaded") setTimeout(refresh, LOADING_MS);
  try {
    await run.read(requestOf(settings, prompt, { continues: continues !== undefined }));
    run.end("done");
  } catch (error) {
    run.fail(error);
  }
}

/**
 * How many tokens an answer has, null where nobody counted them.
 * @param {import("./types.js").Outcome} [outcome]
 */
function lengthOf({ tokens, before } = { model: "" }) {
  if (before === null || (tokens ?? before) === undefined) return null;
  return (tokens ?? 0) + (before ?? 0);
}

/** One request and the messages that its answer fills: one for each choice. */
class Running {
  /**
   * @param {Talk} talk
   * @param {string} id
   * @param {string | null} parent
   */
  constructor(talk, id, parent) {
    this.talk = talk;
    this.id = id;
    this.parent = parent;
    this.began = performance.now();
    this.abort = new AbortController();
    const { content, reasoning, tokens } = talk.peek(id);
    /** @type {Map<number, {id: string, answer: Assembled}>} */
    this.choices = new Map([[0, { id, answer: { ...nothing(), content, reasoning: reasoning ?? "", tokens: [...(tokens ?? [])] } }]]);
    /** @type {Set<number>} */
    this.changed = new Set();
    /** @type {Partial<import("./types.js").Outcome>} */
    this.outcome = {};
    /** Takes back the next showing that a frame was asked for. @type {(() => void) | null} */
    this.unframe = null;
    this.timer = 0;
    this.#stage("asking");
  }

  /** @param {import("./runs.js").Run["stage"]} stage */
  #stage(stage) {
    const { talk, abort, began } = this;
    runs.value = new Map(runs.peek()).set(this.id, { talk, stage, abort, began });
  }

  /** @param {Record<string, any>} request */
  async read(request) {
    /** @type {Trace} */
    const trace = { request, began: this.began, headers: [], events: [] };
    traces.set(this.id, trace);
    if (traces.size > MOST_TRACES) traces.delete(traces.keys().next().value);
    const give = await takeSlot(this.abort.signal, () => this.#stage("waiting"));
    try {
      this.#stage("asking");
      this.began = trace.began = performance.now();
      const response = await ask("v1/chat/completions", { json: request, signal: this.abort.signal });
      trace.headers = [...response.headers];
      this.outcome.requestId = response.headers.get("x-request-id") ?? "";
      this.outcome.unused = response.headers.get("x-headrace-unused") ?? undefined;
      this.outcome.relaxed = response.headers.get("x-headrace-relaxed") ?? undefined;
      if (!response.body) throw new Error("The answer has no body");
      for await (const event of readEvents(response.body)) {
        trace.events.push({ at: event.at - this.began, text: "data" in event ? event.data : `: ${event.comment}` });
        if ("data" in event && event.data !== "[DONE]") this.#take(JSON.parse(event.data), event.at);
      }
      if (!this.outcome.finish) throw new Error("The connection ended before the answer did");
    } finally {
      give();
    }
  }

  /**
   * @param {any} chunk
   * @param {number} at
   */
  #take(chunk, at) {
    if (chunk.error) throw new ServerError(200, chunk.error, this.outcome.requestId ?? "");
    if (chunk.model) this.outcome.model = chunk.model;
    for (const choice of chunk.choices ?? []) {
      const { delta } = choice;
      const says = delta?.content || delta?.reasoning || delta?.reasoning_content || delta?.tool_calls;
      if (says && this.outcome.firstMs === undefined) {
        this.outcome.firstMs = at - this.began;
        this.#stage("writing");
      }
      addPiece(this.#choice(choice.index).answer, choice);
      if (choice.finish_reason) this.outcome.finish = choice.finish_reason;
      this.changed.add(choice.index);
    }
    if (chunk.usage) {
      this.outcome.promptTokens = chunk.usage.prompt_tokens;
      this.outcome.cachedTokens = chunk.usage.prompt_tokens_details?.cached_tokens;
      this.outcome.tokens = chunk.usage.completion_tokens;
    }
    this.outcome.ms = at - this.began;
    this.#schedule();
  }

  /** @param {number} index */
  #choice(index) {
    let choice = this.choices.get(index);
    if (!choice) {
      choice = { id: this.talk.add(this.parent, { role: "assistant", state: "writing" }), answer: nothing() };
      this.choices.set(index, choice);
      this.talk.choose(this.id);
    }
    return choice;
  }

  /** Show what has come with the next frame; a page that is not seen has none. */
  #schedule() {
    if (this.timer || (this.unframe && !document.hidden)) return;
    if (document.hidden) this.timer = window.setTimeout(() => this.#flush(), HIDDEN_FLUSH_MS);
    else this.unframe = inFrame(() => this.#flush());
  }

  #flush() {
    this.unframe?.();
    this.unframe = null;
    clearTimeout(this.timer);
    this.timer = 0;
    for (const index of this.changed) {
      const choice = this.#choice(index);
      const { id, answer: { content, reasoning, calls, tokens } } = choice;
      this.talk.change(id, {
        content,
        outcome: this.#outcomeOf(choice), // kept with the text, so that both outlive the page
        ...(reasoning ? { reasoning } : {}),
        ...(calls.length ? { calls: calls.map((call) => ({ ...call })) } : {}),
        ...(tokens.length ? { tokens: [...tokens] } : {}),
      });
    }
    this.changed.clear();
  }

  /**
   * How an answer has come about so far.
   * @param {{id: string, answer: Assembled}} choice
   */
  #outcomeOf({ id, answer: { finish } }) {
    const before = this.talk.messages.has(id) ? this.talk.peek(id).outcome : undefined;
    return { model: "", ...before, ...this.outcome, finish };
  }

  /**
   * @param {"done" | "stopped" | "failed"} state
   * @param {import("./types.js").Outcome["error"]} [error]
   */
  end(state, error) {
    this.#flush();
    for (const choice of this.choices.values()) {
      this.talk.change(choice.id, { state, outcome: { ...this.#outcomeOf(choice), error } });
    }
    this.talk.changeRecord({ updated: Date.now() });
    const left = new Map(runs.peek());
    left.delete(this.id);
    runs.value = left;
  }

  /** @param {unknown} error */
  fail(error) {
    if (this.abort.signal.aborted) return this.end("stopped");
    void refresh(); // the server may be away, or the model
    const message = error instanceof Error ? error.message : String(error);
    const { param = null, code = null, requestId = "", status = 0 } = error instanceof ServerError ? error : {};
    this.end("failed", { message, param, code, requestId, status });
  }
}
