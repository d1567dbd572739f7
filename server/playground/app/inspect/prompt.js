/** The prompt as the model reads it: what its template made of the conversation, token by token. */
import { h, useEffect, useState } from "../core/ui.js";
import { count, counted } from "../core/format.js";
import { ask } from "../api/client.js";
import { inspectedOf } from "../state/inspected.js";
import { plainMessage } from "../talk/request.js";

/** @typedef {{count: number, tokens: number[], token_strs: string[], special_positions: number[], cached_tokens: number | null}} Rendered */

/** So many tokens are shown at most: a page of more is slow. */
const MOST_SHOWN = 4000;

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export default function Prompt({ talk }) {
  const [rendered, setRendered] = useState(/** @type {Rendered | null} */ (null));
  const [fault, setFault] = useState("");
  const [ids, setIds] = useState(false);
  const answer = inspectedOf(talk);
  const { settings } = talk.record.value;
  const path = talk.path.value;
  const end = answer ? path.indexOf(answer.id) : path.length;
  const messages = path.slice(0, end < 0 ? path.length : end).map((id) => talk.messages.get(id)?.value).filter((message) => message !== undefined);
  const state = answer?.state;
  useEffect(() => {
    if (!messages.length) return;
    const abort = new AbortController();
    const json = { ...(settings.model ? { model: settings.model } : {}), messages: messages.map(plainMessage), ...toolsOf(settings), return_token_strs: true, return_cached_tokens: true };
    ask("tokenize", { json, signal: abort.signal })
      .then((response) => response.json())
      .then((found) => (setRendered(found), setFault("")), (error) => abort.signal.aborted || setFault(error.message));
    return () => abort.abort();
    // What an answer has computed is there once it has come.
  }, [settings, state, ...messages]);
  if (!messages.length) return h("p", { class: "muted" }, "Once something is said, the prompt that the model reads is shown here.");
  if (fault) return h("p", { class: "note error", role: "alert" }, fault);
  if (!rendered) return h("p", { class: "muted" }, "Rendering");
  const cached = rendered.cached_tokens ?? 0;
  const found = answer?.outcome?.cachedTokens;
  const special = new Set(rendered.special_positions);
  return h("div", { class: "stack" },
    h("div", { class: "row" },
      h("span", { class: "small muted" }, `${counted(rendered.count, "token")}; the prefix cache holds ${cached ? `the first ${count(cached)}` : "none"} now${found === undefined ? "" : `, and the answer found ${count(found)} there`}`),
      h("span", { class: "spring" }),
      h("button", { type: "button", class: "button small", "aria-pressed": ids, onClick: () => setIds(!ids) }, "Ids"),
    ),
    h("div", { class: "legend" }, h("span", { class: "control" }, "control token"), cached > 0 && h("span", { class: "cached" }, "in the prefix cache")),
    h("pre", { class: "rendered", tabIndex: 0, role: "region", "aria-label": "Rendered prompt" }, rendered.token_strs.slice(0, MOST_SHOWN).map((text, index) => h("span", {
      key: index, class: `${special.has(index) ? "control" : ids ? "apart" : ""} ${index < cached ? "cached" : ""}`, title: `${rendered.tokens[index]}`,
    }, text, ids && h("small", {}, rendered.tokens[index])))),
    rendered.count > MOST_SHOWN && h("p", { class: "small muted" }, `The first ${count(MOST_SHOWN)} are shown.`),
  );
}

/** @param {import("../talk/types.js").Settings} settings */
function toolsOf({ tools, params }) {
  try {
    const prompt = tools.trim() && params.tool_prompt ? { tool_prompt: params.tool_prompt } : {};
    const key = params.prompt_cache_key ? { prompt_cache_key: params.prompt_cache_key } : {};
    const kwargs = params.chat_template_kwargs ? { chat_template_kwargs: params.chat_template_kwargs } : {};
    return { ...(tools.trim() ? { tools: JSON.parse(tools) } : {}), ...prompt, ...key, ...kwargs };
  } catch {
    return {};
  }
}
