/** The head of a compared column: its model, what differs of its settings, a way to take it away. */
import { h } from "../core/ui.js";
import { lazy } from "../core/lazy.js";
import { Glyph, IconButton } from "../core/glyphs.js";
import { modelOf, nameOf } from "../api/server.js";
import { MOST_COLUMNS, removeColumn, showsDifference } from "../state/compare.js";
import { columns, current, focused } from "../state/library.js";
import { prefer, preferences } from "../state/preferences.js";
import { compare } from "./doing.js";
import { focusComposer } from "./keys.js";
import { openOverlay } from "./panes.js";
import { TabList } from "./tablist.js";

const ModelDialog = lazy(async () => (await import("./models.js")).ModelDialog);

/** @param {{talk: import("../talk/talk.js").Talk, index: number}} props */
export function ColumnHead({ talk, index }) {
  const { params, format, tools } = talk.settings.value;
  const model = modelOf(talk.settings.value);
  const set = Object.entries(params).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  if (format.kind !== "text") set.push(format.kind);
  if (tools.trim()) set.push("tools");
  return h("header", { class: `column-head ${current.value === talk ? "current" : ""}` },
    h("div", { class: "row" },
      h("span", { class: "chip" }, String(index + 1)),
      h("button", { type: "button", class: "button small quiet name", "aria-haspopup": "dialog", title: model?.id, onClick: () => openOverlay(ModelDialog, { talk }) }, h("span", {}, model ? nameOf(model.id) : "Model"), h(Glyph, { name: "down" })),
      h("span", { class: "spring" }),
      h(IconButton, { glyph: "close", label: `Remove column ${index + 1}`, small: true, onClick: () => (removeColumn(talk), focusComposer()) }),
    ),
    h("p", { class: "small muted" }, set.join(" · ") || "Default settings"),
  );
}

/** On a phone, where one column has room: the way to the others. */
export function ColumnTabs() {
  const entries = columns.value.map((talk, index) => {
    const model = modelOf(talk.settings.value);
    return { id: talk.id, label: `${index + 1} ${model ? nameOf(model.id) : "Model"}`, title: model?.id };
  });
  const choose = (/** @type {string} */ id) => (focused.value = columns.peek().findIndex((talk) => talk.id === id));
  return h("div", { class: "column-tabs" }, h(TabList, { label: "Columns", panel: "columns", entries, chosen: current.value.id, onChoose: choose }));
}

/** What holds for all columns: when they answer, and whether they show how they differ. */
export function CompareBar() {
  const { inTurn } = preferences.value;
  return h("div", { class: "compare-bar", role: "toolbar", "aria-label": "Comparison" },
    h("label", { class: "row small" }, h("input", { type: "checkbox", checked: inTurn, onChange: (/** @type {any} */ event) => prefer({ inTurn: event.currentTarget.checked }) }), "Answer in turn"),
    h("span", { class: "small muted hint" }, inTurn ? "Each has the device for itself, so the figures can be compared." : "Columns that share a device slow each other."),
    h("span", { class: "spring" }),
    h("button", { type: "button", class: "button small", "aria-pressed": showsDifference.value, onClick: () => (showsDifference.value = !showsDifference.peek()) }, "Differences"),
    columns.value.length < MOST_COLUMNS && h("button", { type: "button", class: "button small", onClick: compare }, h(Glyph, { name: "plus" }), "Column"),
  );
}
