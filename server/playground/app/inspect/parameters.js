/** Every field of a request, as the server describes it: what it means, its range, its default; sent only if set. */
import { h, useState } from "../core/ui.js";
import { IconButton } from "../core/glyphs.js";
import { fields, modelOf } from "../api/server.js";
import { OWN_FIELDS } from "../talk/request.js";
import { FieldInput } from "./field.js";
import { Presets } from "./presets.js";

/** What most people come for; the rest follows under their headings. */
const COMMON = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "stop", "frequency_penalty", "presence_penalty", "repetition_penalty"];
const LOOK = ["logprobs", "top_logprobs", "n"];
const REASONING = ["reasoning_effort", "max_reasoning_tokens"];
/** Ranges of so many characters stand beside the name. */
const SHORT_RANGE = 24;
/** In the tab of tools. */
export const TOOL_FIELDS = ["tool_choice", "parallel_tool_calls", "tool_prompt"];

/** @typedef {import("../api/fields.js").Field} Field */

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export default function Parameters({ talk }) {
  const [changedOnly, setChangedOnly] = useState(false);
  const { params } = talk.settings.value;
  const numSet = Object.keys(params).length;
  const model = modelOf(talk.settings.value);
  const groups = [...grouped(fields.value, model?.capabilities?.reasoning === true), unknown(params)];
  return h("div", { class: "stack" },
    h(Presets, { talk }),
    h("div", { class: "row" },
      h("span", { class: "small muted" }, numSet ? `${numSet} set; only these are sent` : "Nothing set: the server's defaults hold"),
      h("span", { class: "spring" }),
      numSet > 0 && h("button", { type: "button", class: "button small", "aria-pressed": changedOnly, onClick: () => setChangedOnly(!changedOnly) }, "Only these"),
      numSet > 0 && h("button", { type: "button", class: "button small", onClick: () => (talk.changeSettings({ params: {} }), setChangedOnly(false)) }, "Reset all"),
    ),
    groups.map(({ title, open, list }) => {
      const shown = changedOnly ? list.filter(({ name }) => name in params) : list;
      if (!shown.length) return null;
      const rows = h("div", { class: "fields" }, shown.map((field) => h(Row, { key: field.name, talk, field, model })));
      return title === "" ? rows : h("details", { key: title, class: "group", open: open || shown.some(({ name }) => name in params) }, h("summary", {}, title), rows);
    }),
  );
}

/**
 * @param {Field[]} all
 * @param {boolean} reasons
 */
function grouped(all, reasons) {
  const byName = new Map(all.map((field) => [field.name, field]));
  /** @param {string[]} names */
  const pick = (names) => names.map((name) => byName.get(name)).filter((field) => field !== undefined);
  const placed = new Set([...COMMON, ...LOOK, ...REASONING, ...TOOL_FIELDS, ...OWN_FIELDS]);
  const rest = all.filter(({ name }) => !placed.has(name));
  return [
    { title: "", open: true, list: pick(COMMON) },
    { title: "Log-probabilities and choices", open: true, list: pick(LOOK) },
    { title: "Reasoning", open: reasons, list: pick(REASONING) },
    { title: "More", open: false, list: rest.filter(({ status }) => status === "supported") },
    { title: "Hints and fields that are done in part", open: false, list: rest.filter(({ status }) => status === "hint" || status === "partly") },
    { title: "Fields that this server refuses", open: false, list: rest.filter(({ status }) => status === "refused") },
  ];
}

/**
 * What is sent, as a pasted request had it, though the server's description does not name it.
 * @param {Record<string, unknown>} params
 */
function unknown(params) {
  const known = new Set(fields.value.map(({ name }) => name));
  const names = known.size ? Object.keys(params).filter((name) => !known.has(name)) : [];
  const list = names.map((name) => /** @type {Field} */ ({ name, meaning: "Sent as it is", range: "", status: "refused", kind: "json", default: undefined }));
  return { title: "Fields that this server does not know", open: true, list };
}

/**
 * @param {{talk: import("../talk/talk.js").Talk, field: Field, model: import("../api/server.js").Model | undefined}} props
 */
export function Row({ talk, field, model }) {
  const { name, meaning, range } = field;
  const { params } = talk.settings.value;
  const isSet = name in params;
  const fault = faultOf(talk, name);
  /** @param {unknown} value */
  const set = (value) => talk.changeSettings({ params: { ...talk.settings.peek().params, [name]: value } });
  const reset = () => {
    const { [name]: _, ...others } = talk.settings.peek().params;
    talk.changeSettings({ params: others });
  };
  const isShort = range.length <= SHORT_RANGE;
  const standard = model?.sampling_defaults?.[name] ?? field.default;
  return h("div", { class: `field ${isSet ? "set" : ""}` },
    h("div", { class: "row" },
      h("label", { htmlFor: `field-${name}` }, h("code", {}, name)),
      h("span", { class: "spring" }),
      isShort && h("span", { class: "small muted" }, range),
      isSet && h(IconButton, { glyph: "retry", label: `Reset ${name}`, small: true, onClick: reset }),
    ),
    h(FieldInput, { id: `field-${name}`, field, value: params[name], isSet, standard, fault, onSet: set, onReset: reset }),
    h("p", { class: "small muted", id: `field-${name}-about` }, isShort ? meaning : `${meaning}. ${range}`),
    fault && h("p", { class: "small fault", role: "alert" }, fault),
  );
}

/**
 * What the server said was wrong with a field, in the last answer that is shown.
 * @param {import("../talk/talk.js").Talk} talk
 * @param {string} name
 */
function faultOf(talk, name) {
  const error = talk.lastError.value;
  return error?.param?.split(/[.[]/)[0] === name ? error.message : "";
}
