/** What an answer is held to: JSON, a schema, an expression, a choice, a grammar; checked by the server as one types. */
import { h } from "../core/ui.js";
import { modelOf } from "../api/server.js";
import { formatFields } from "../talk/request.js";
import { useCheck } from "./check.js";
import { Editor } from "./editor.js";

/** @typedef {import("../talk/types.js").FormatKind} Kind */

/** @type {Record<Kind, {label: string, about: string, sample: string}>} */
const KINDS = {
  text: { label: "Free text", about: "The model answers as it likes.", sample: "" },
  json_object: { label: "Any JSON object", about: "The answer is one JSON object, of any shape.", sample: "" },
  json_schema: {
    label: "JSON Schema",
    about: "The answer is JSON that fits the schema. A whole response_format is taken as well, as OpenAI or Hugging Face spell it.",
    sample: JSON.stringify({ type: "object", properties: { name: { type: "string" }, age: { type: "integer", minimum: 0 } }, required: ["name", "age"] }, null, 2),
  },
  regex: { label: "Regular expression", about: "The whole answer matches the expression.", sample: "[0-9]{4}-[0-9]{2}-[0-9]{2}" },
  choice: { label: "One of several texts", about: "The answer is one of these lines.", sample: "positive\nneutral\nnegative" },
  grammar: { label: "Grammar", about: "The answer follows a grammar in Lark's notation.", sample: 'start: "yes" | "no"' },
};

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export default function Format({ talk }) {
  const { format, model } = talk.settings.value;
  const { kind, text, strict } = format;
  const verdict = useCheck(text, model, () => (kind === "text" || kind === "json_object" || !text.trim() ? null : formatFields(talk.settings.peek().format)), [kind, strict]);
  /** @param {Partial<typeof format>} change */
  const set = (change) => talk.changeSettings({ format: { ...talk.settings.peek().format, ...change } });
  /** @param {Kind} next */
  const choose = (next) => {
    const isSample = Object.values(KINDS).some(({ sample }) => sample === text);
    set({ kind: next, text: text && !isSample && next !== "text" ? text : KINDS[next].sample });
  };
  const known = modelOf(talk.settings.value)?.capabilities?.structured_outputs;
  const kinds = /** @type {Kind[]} */ (Object.keys(KINDS)).filter((one) => one === "text" || !known || known.includes(one));
  return h("div", { class: "stack" },
    h("label", { class: "stack tight" }, h("span", { class: "small muted" }, "The answer is"),
      h("select", { class: "input", value: kind, onChange: (/** @type {any} */ event) => choose(event.currentTarget.value) }, kinds.map((one) => h("option", { key: one, value: one }, KINDS[one].label))),
    ),
    h("p", { class: "small muted" }, KINDS[kind].about),
    kind !== "text" && kind !== "json_object" && h(Editor, { label: KINDS[kind].label, value: text, rows: kind === "regex" ? 3 : 14, ...verdict, onInput: (next) => set({ text: next }) }),
    kind === "json_schema" && h("label", { class: "row" },
      h("input", { type: "checkbox", checked: strict, onChange: (/** @type {any} */ event) => set({ strict: event.currentTarget.checked }) }),
      h("span", {}, "Strict ", h("span", { class: "small muted" }, "refuses what cannot be followed; else it is left out and named")),
    ),
  );
}
