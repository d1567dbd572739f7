/** Requests to the server that gave this page: with the key, and with its errors as errors. */
import { signal } from "../core/ui.js";

const KEY_NAME = "headrace-key";

/** The API key, kept for this tab's session alone and never stored anywhere else. */
export const apiKey = signal(sessionStorage.getItem(KEY_NAME) ?? "");

/** Whether the server has refused to talk without a key, or with the one it was given. */
export const keyWanted = signal(false);

const MINUTE_MS = 60_000;
/** Requests that the key may send in a minute. */
let mostInAMinute = Infinity;

/**
 * How long to wait before the page asks something by itself, as while one types: half of what a key may send is left to
 * whoever has it.
 * @param {number} ms that would be long enough
 */
export const pause = (ms) => Math.max(ms, (2 * MINUTE_MS) / mostInAMinute);

/** Whether the models were refused for want of a key, which may be given later. */
export const locked = signal(false);

/**
 * Use this key from now on.
 * @param {string} key
 */
export function setApiKey(key) {
  apiKey.value = key;
  if (key) sessionStorage.setItem(KEY_NAME, key);
  else sessionStorage.removeItem(KEY_NAME);
  keyWanted.value = false;
}

/** What the server answered in place of what was asked for. */
export class ServerError extends Error {
  /**
   * @param {number} status
   * @param {{message?: string, param?: string | null, code?: string | null}} error OpenAI's shape
   * @param {string} requestId
   */
  constructor(status, error, requestId) {
    super(error.message ?? `The server answered with status ${status}`);
    this.name = "ServerError";
    this.status = status;
    /** The path of the field at fault, such as `messages[1].content`. */
    this.param = error.param ?? null;
    this.code = error.code ?? null;
    this.requestId = requestId;
  }
}

/** The server could not be reached at all, or the connection ended. */
export class Unreachable extends Error {
  constructor() {
    super("The server cannot be reached");
    this.name = "Unreachable";
  }
}

/**
 * Ask the server. The page may stand below a proxy's path, so paths have no slash in front.
 * @param {string} path such as `v1/models`
 * @param {{json?: unknown, signal?: AbortSignal}} [options] with `json` it is a POST of that body
 * @returns {Promise<Response>} an answer of status 2xx
 * @throws {ServerError | Unreachable | DOMException} the last where `signal` ended it
 */
export async function ask(path, { json, signal: abort } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (apiKey.value) headers.authorization = `Bearer ${apiKey.value}`;
  if (json !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: json === undefined ? "GET" : "POST",
      headers,
      body: json === undefined ? undefined : JSON.stringify(json),
      signal: abort,
      cache: "no-store",
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  if (json !== undefined) mostInAMinute = Number(response.headers.get("x-ratelimit-limit-requests")) || Infinity;
  if (response.ok) return response;
  if (response.status === 401) keyWanted.value = locked.value = true;
  throw new ServerError(response.status, await errorOf(response), response.headers.get("x-request-id") ?? "");
}

/**
 * The error of an answer; an empty one where a proxy answered in a shape of its own.
 * @param {Response} response
 */
async function errorOf(response) {
  try {
    return (await response.json()).error ?? {};
  } catch {
    return {};
  }
}
