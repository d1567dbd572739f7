/** Functions that the model may call: their definitions, and how it may use them. */
import { h } from "../core/ui.js";
import { fields, modelOf } from "../api/server.js";
import { useCheck } from "./check.js";
import { Editor } from "./editor.js";
import { Row, TOOL_FIELDS } from "./parameters.js";

const EXAMPLE = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city now",
    parameters: { type: "object", properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } }, required: ["city"] },
  },
}];

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export default function Tools({ talk }) {
  const { tools, model } = talk.settings.value;
  const known = modelOf(talk.settings.value);
  const verdict = useCheck(tools, model, () => (tools.trim() ? { tools: parsed(talk.settings.peek().tools), tool_choice: "auto" } : null));
  const rows = fields.value.filter(({ name }) => TOOL_FIELDS.includes(name));
  return h("div", { class: "stack" },
    known?.capabilities && !known.capabilities.tools && h("p", { class: "note warn" }, "This model has no chat template, so it cannot be told of tools."),
    h("p", { class: "small muted" }, "Definitions as a JSON array, in OpenAI's shape. A call is shown as a card; you type what the function returns."),
    h(Editor, { label: "Definitions of tools", value: tools, rows: 14, placeholder: "[]", ...verdict, onInput: (text) => talk.changeSettings({ tools: text }) }),
    h("div", { class: "row" },
      !tools.trim() && h("button", { type: "button", class: "button small", onClick: () => talk.changeSettings({ tools: JSON.stringify(EXAMPLE, null, 2) }) }, "Begin with an example"),
      tools.trim() && h("button", { type: "button", class: "button small", onClick: () => talk.changeSettings({ tools: "" }) }, "Clear"),
    ),
    rows.map((field) => h(Row, { key: field.name, talk, field, model: known })),
  );
}

/** @param {string} text */
function parsed(text) {
  const value = JSON.parse(text);
  if (!Array.isArray(value)) throw new SyntaxError("The definitions must be an array");
  return value;
}
