/** How many tokens the conversation has with what is being typed: counted by the server, never guessed. */
import { h, useEffect, useState } from "../core/ui.js";
import { count } from "../core/format.js";
import { ask, pause } from "../api/client.js";
import { modelOf } from "../api/server.js";
import { plainMessage } from "../talk/request.js";

const PAUSE_MS = 300;

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export function Tokens({ talk }) {
  const [counted, setCounted] = useState(/** @type {{count: number, max: number} | null} */ (null));
  const { draft, settings } = talk.record.value;
  const path = talk.path.value;
  const ready = modelOf(settings)?.state === "ready";
  const lastText = talk.lastText.value;
  const writes = lastText === undefined;
  useEffect(() => {
    if (!ready || writes) return;
    const abort = new AbortController();
    const timer = setTimeout(() => {
      countTokens(talk, abort.signal).then(setCounted, () => abort.signal.aborted || setCounted(null));
    }, pause(PAUSE_MS));
    return () => (clearTimeout(timer), abort.abort());
  }, [draft.text, draft.images.length, settings.model, settings.tools, path.join(), lastText, ready]);
  if (!counted) return null;
  const full = counted.count > counted.max;
  return h("span", { class: `count small ${full ? "full" : "muted"}`, title: "Tokens of the prompt, as the server counts them, of the model's context" },
    `${count(counted.count)} / ${count(counted.max)} tokens`);
}

/**
 * @param {import("../talk/talk.js").Talk} talk
 * @param {AbortSignal} abort
 */
async function countTokens(talk, abort) {
  const { draft, settings } = talk.record.peek();
  const shown = talk.shown().filter((message) => message.state !== "failed" || message.content);
  const messages = shown.map(plainMessage);
  if (draft.text || draft.images.length) messages.push(plainMessage({ role: "user", content: draft.text, images: draft.images }));
  if (!messages.length) return null;
  const tools = toolsOf(settings.tools);
  const json = { ...(settings.model ? { model: settings.model } : {}), messages, ...(tools ? { tools } : {}) };
  const answer = await (await ask("tokenize", { json, signal: abort })).json();
  return { count: answer.count, max: answer.max_model_len };
}

/** @param {string} text */
function toolsOf(text) {
  try {
    return text.trim() ? JSON.parse(text) : null;
  } catch {
    return null; // half typed
  }
}
