/**
 * How many streams are open in all tabs of this browser.
 *
 * A browser has six connections to a server over HTTP/1.1. The seventh request would wait in silence, and with it all
 * that the page asks for beside its streams; so a stream waits here, where it can be said.
 */
import { newId } from "../core/ids.js";

/** One connection of the six is left for all that is no stream. */
export const MOST_STREAMS = 5;
const FORGOTTEN_AFTER_MS = 5000;
const HEARTBEAT_MS = 2000;

const tab = newId();
const channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("headrace-streams");
/** @type {Map<string, {count: number, at: number}>} */
const others = new Map();
/** @type {Set<() => void>} */
const waiting = new Set();
let own = 0;
let heartbeat = 0;

channel?.addEventListener("message", ({ data }) => {
  if (data.asks) return tell();
  others.set(data.tab, { count: data.count, at: Date.now() });
  wake();
});
channel?.postMessage({ asks: true });

function tell() {
  channel?.postMessage({ tab, count: own });
  clearTimeout(heartbeat);
  if (own) heartbeat = window.setTimeout(tell, HEARTBEAT_MS);
}

function wake() {
  for (const look of [...waiting]) look();
}

function open() {
  const fresh = [...others.values()].filter(({ at }) => Date.now() - at < FORGOTTEN_AFTER_MS);
  return own + fresh.reduce((sum, { count }) => sum + count, 0);
}

/**
 * Wait for a connection.
 * @param {AbortSignal} abort
 * @param {() => void} onWait called if there is none yet
 * @returns {Promise<() => void>} gives it back; to be called once
 */
export async function takeSlot(abort, onWait) {
  if (open() >= MOST_STREAMS) {
    onWait();
    await new Promise((resolve, reject) => {
      const timer = setInterval(() => look(), 1000); // tabs may be closed without a word
      const end = () => (clearInterval(timer), waiting.delete(look), abort.removeEventListener("abort", fail));
      const look = () => open() < MOST_STREAMS && (end(), resolve(undefined));
      const fail = () => (end(), reject(abort.reason));
      waiting.add(look);
      abort.addEventListener("abort", fail);
    });
  }
  own++;
  tell();
  return () => {
    own--;
    tell();
    wake();
  };
}
