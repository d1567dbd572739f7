/** The bar: the model, what can be done with the conversation, and how the server stands. */
import { h } from "../core/ui.js";
import { Glyph, IconButton } from "../core/glyphs.js";
import { lazy } from "../core/lazy.js";
import { keyWanted, locked } from "../api/client.js";
import { link, modelOf, models, nameOf, refusal, stateWords } from "../api/server.js";
import { begin, columns, current, forgets } from "../state/library.js";
import { preferences } from "../state/preferences.js";
import { MOST_COLUMNS } from "../state/compare.js";
import { compare, nextTheme, openShare } from "./doing.js";
import { focusComposer } from "./keys.js";
import { isWide, openOverlay, panes, toggle } from "./panes.js";

const ServerChip = lazy(async () => (await import("./chip.js")).ServerChip);
const ModelDialog = lazy(async () => (await import("./models.js")).ModelDialog);

export function Topbar() {
  const { history, inspector } = panes.value;
  const { theme } = preferences.value;
  return h("header", { class: "topbar" },
    h(IconButton, { glyph: "menu", label: history ? "Close the history" : "Open the history", "aria-expanded": history, onClick: () => toggle("history") }),
    h("span", { class: "brand" }, "Headrace"),
    h(ModelButton, {}),
    h("span", { class: "spring" }),
    forgets.value && h("span", { class: "chip", title: "This browser keeps no data for this page" }, "Not kept"),
    h(ServerChip, {}),
    h(IconButton, { glyph: "columns", label: "Compare: add a column", class: "wide-only", disabled: columns.value.length >= MOST_COLUMNS, onClick: compare }),
    h(IconButton, { glyph: "share", label: "Share, export, import", class: "wide-only", "aria-haspopup": "dialog", onClick: openShare }),
    h(IconButton, { glyph: "theme", label: `Colours: ${theme}`, class: "wide-only", onClick: nextTheme }),
    h(IconButton, { glyph: "plus", label: "New conversation", onClick: () => (begin(), focusComposer()) }),
    h(IconButton, { glyph: "sliders", class: "no-places", label: inspector ? "Close the inspector" : "Open the inspector", "aria-expanded": inspector, onClick: () => toggle("inspector") }),
    link.value === "unreachable" && h("div", { class: "banner", role: "alert" }, h("span", { class: "dot unreachable" }), "The server cannot be reached; trying again."),
    refusal.value && h("div", { class: "banner", role: "alert" }, h("span", { class: "dot failed" }), refusal.value),
  );
}

/** The model that answers, and a way to another. */
function ModelButton() {
  const talk = current.value;
  const model = modelOf(talk.settings.value);
  const { state } = model ?? { state: link.value === "connecting" ? "connecting" : "unknown" };
  const choose = () => openOverlay(ModelDialog, { talk });
  const words = model ? stateWords(model) : "";
  const missing = talk.settings.value.model;
  if (!models.value.length && locked.value) return h("button", { type: "button", class: "button model-button", onClick: () => (keyWanted.value = true) }, h(Glyph, { name: "key" }), "Enter the API key");
  return h("button", { type: "button", class: "button model-button", "aria-haspopup": "dialog", onClick: choose, disabled: !models.value.length, title: model?.id },
    h("span", { class: `dot ${link.value === "unreachable" ? "unreachable" : state}` }),
    h("span", { class: "name" }, model ? (isWide.value ? model.id : nameOf(model.id)) : link.value === "connecting" ? "Connecting" : missing ? nameOf(missing) : "No model"),
    !model && missing && models.value.length > 0 && h("span", { class: "muted small" }, "not here"),
    model && model.state !== "ready" && h("span", { class: "muted small" }, words),
    h(Glyph, { name: "down" }),
  );
}
