/** The choice of a model: its state, its context, what it can do. */
import { h, useState } from "../core/ui.js";
import { counted, shortCount } from "../core/format.js";
import { Glyph } from "../core/glyphs.js";
import { modelOf, models, stateWords } from "../api/server.js";
import { Dialog } from "./dialog.js";

/** @typedef {import("../api/server.js").Model} Model */

/** From so many models on there is a box to search in. */
const SEARCHED = 8;

/** @param {{talk: import("../talk/talk.js").Talk, onClose: () => void}} props */
export function ModelDialog({ talk, onClose }) {
  const [search, setSearch] = useState("");
  const chosen = modelOf(talk.settings.value);
  const shown = models.value.filter((model) => model.id.toLowerCase().includes(search.toLowerCase()));
  /** @param {Model} model */
  const choose = (model) => {
    talk.changeSettings({ model: model.id });
    onClose();
  };
  return h(Dialog, { title: "Model", onClose },
    models.value.length >= SEARCHED && h("input", { class: "input", type: "search", placeholder: "Search", "aria-label": "Search for a model", value: search, onInput: (/** @type {any} */ event) => setSearch(event.currentTarget.value) }),
    h("ul", { class: "models" }, shown.map((model) => h("li", { key: model.id },
      h("button", { type: "button", class: "model-choice", "aria-current": model === chosen ? "true" : undefined, onClick: () => choose(model) },
        h("span", { class: "row" }, h("span", { class: `dot ${model.state}` }), h("strong", {}, model.id), h("span", { class: "spring" }), model === chosen && h(Glyph, { name: "check" })),
        h("span", { class: "small muted" }, facts(model)),
        h("span", { class: "chips" }, abilities(model).map((one) => h("span", { key: one, class: "chip" }, one))),
      ),
    ))),
    !shown.length && h("p", { class: "muted" }, "No model of this server has such a name."),
  );
}

/** @param {Model} model */
function facts(model) {
  const { context_length: context, dtype, device } = model;
  return [stateWords(model), context && `${counted(context, "token")} of context`, dtype && `${dtype} on ${device}`].filter(Boolean).join(" · ");
}

/**
 * @param {Model} model
 * @returns {string[]}
 */
function abilities({ capabilities, kv_cache_tokens: kv }) {
  if (!capabilities) return [];
  const found = [
    capabilities.input.includes("image") && "Images",
    capabilities.tools && "Tools",
    capabilities.reasoning && "Reasoning",
    capabilities.structured_outputs?.length && "Formats",
    capabilities.logprobs && "Log-probabilities",
    kv && `KV cache ${shortCount(kv)} tokens`,
  ];
  return /** @type {string[]} */ (found.filter(Boolean));
}
