/** The server's panel: what runs and waits, the last minutes, the models and their states. */
import { h } from "../core/ui.js";
import { count, counted, perSecond, shortCount } from "../core/format.js";
import { barred, now, samples } from "../api/metrics.js";
import { ask, Unreachable } from "../api/client.js";
import { models, refresh, stateWords } from "../api/server.js";
import { notify } from "../state/notices.js";
import { Dialog } from "./dialog.js";

const WIDTH = 400;
const HEIGHT = 90;

/** @param {{onClose: () => void}} props */
export function ServerDialog({ onClose }) {
  const sample = now.value;
  const list = samples.value;
  return h(Dialog, { title: "Server", onClose, wide: true },
    !sample && h("p", { class: "muted" }, barred.value || "Asking the server"),
    (sample || barred.value) && h("div", { class: "stack" },
      sample && h("dl", { class: "tiles" },
        h(Tile, { label: "Running", value: count(sample.running) }),
        h(Tile, { label: "Waiting", value: count(sample.waiting) }),
        h(Tile, { label: "KV cache in use", value: `${Math.round(sample.kv * 100)} %` }),
        h(Tile, { label: "Generating", value: perSecond(sample.rate) }),
      ),
      sample && h("div", { class: "plots" },
        h(Plot, { label: "Tokens a second", values: list.slice(1).map(({ rate }) => rate), show: perSecond }),
        h(Plot, { label: "KV cache in use", values: list.map(({ kv }) => kv * 100), top: 100, show: (value) => `${Math.round(value)} %` }),
      ),
      h("div", { class: "table-scroll", tabIndex: 0, role: "region", "aria-label": "Models" }, h("table", { class: "facts" },
        h("thead", {}, h("tr", {}, ["Model", "State", "Context", "KV cache", "Running", "Waiting", "Generated", "Prompt tokens cached", "In memory"].map((name) => h("th", { key: name, scope: "col" }, name)))),
        h("tbody", {}, models.value.map((model) => h(ModelRow, { key: model.id, model, series: sample && (sample.models[model.id] ?? {}) }))),
      )),
    ),
  );
}

/** @param {{label: string, value: string}} props */
function Tile({ label, value }) {
  return h("div", { class: "tile" }, h("dt", {}, label), h("dd", {}, value));
}

/** @param {{model: import("../api/server.js").Model, series: Record<string, number> | undefined}} props without figures where nobody may see them */
function ModelRow({ model, series }) {
  const computed = series?.prompt_tokens_computed_total ?? 0;
  const cached = series?.prompt_tokens_cached_total ?? 0;
  const share = computed + cached ? `${Math.round((cached / (computed + cached)) * 100)} %` : "–";
  return h("tr", {},
    h("th", { scope: "row" }, model.id),
    h("td", {}, h("span", { class: `dot ${model.state}` }), " ", stateWords(model)),
    h("td", {}, model.context_length ? shortCount(model.context_length) : "–"),
    h("td", {}, model.kv_cache_tokens ? `${shortCount(model.kv_cache_tokens)} tokens` : "–"),
    h("td", {}, series ? count(series.requests_running ?? 0) : "–"),
    h("td", {}, series ? count(series.requests_waiting ?? 0) : "–"),
    h("td", {}, series ? shortCount(series.generation_tokens_total ?? 0) : "–"),
    h("td", {}, share),
    h("td", {}, h(Residence, { model })),
  );
}

/** What can be done with a model by its state. */
const VERBS = new Map([["unloaded", "Load"], ["failed", "Load"], ["ready", "Unload"], ["asleep", "Unload"]]);

/**
 * Loads a model or puts it away, which servers with keys let only their operators do.
 * @param {{model: import("../api/server.js").Model}} props
 */
function Residence({ model }) {
  const verb = VERBS.get(model.state);
  if (!verb) return "–";
  const act = async () => {
    const path = model.id.split("/").map(encodeURIComponent).join("/");
    const done = ask(`admin/models/${path}/${verb.toLowerCase()}`, { json: {} });
    setTimeout(refresh, 200); // it says meanwhile how far the load is
    try {
      await done;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      if (!(error instanceof Unreachable)) notify(error.message);
    }
    refresh();
  };
  return h("button", { type: "button", class: "button", onClick: act, "aria-label": `${verb} ${model.id}` }, verb);
}

/**
 * A line of the last minutes, and its figures in words.
 * @param {{label: string, values: number[], top?: number, show: (value: number) => string}} props
 */
function Plot({ label, values, top, show }) {
  const highest = top ?? Math.max(1, ...values) * 1.1;
  const step = values.length > 1 ? WIDTH / (values.length - 1) : WIDTH;
  const points = values.map((value, index) => `${(index * step).toFixed(1)},${(HEIGHT - (value / highest) * HEIGHT).toFixed(1)}`);
  const words = values.length ? `${show(values[values.length - 1])} now, ${show(Math.max(...values))} at most` : "no figures yet";
  return h("figure", { class: "plot" },
    h("figcaption", {}, h("strong", {}, label), h("span", { class: "muted small" }, words, values.length > 1 && `, ${counted(Math.round((values.length * 2) / 60) || 1, "minute")}`)),
    h("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${label}: ${words}` },
      h("polygon", { class: "area", points: points.length ? `0,${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}` : "" }),
      h("polyline", { class: "line", points: points.join(" ") }),
    ),
  );
}
