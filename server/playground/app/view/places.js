/** The bar at a phone's foot, within reach of the thumb: the conversation, and what the inspector shows of it. */
import { h } from "../core/ui.js";
import { Glyph } from "../core/glyphs.js";
import { preferences } from "../state/preferences.js";
import { tabs } from "../inspect/tabs.js";
import { inspect, panes, toggle } from "./panes.js";

const PLACES = /** @type {const} */ ([
  { id: "chat", label: "Chat", glyph: "chat" },
  { id: "settings", label: "Settings", glyph: "sliders" },
  { id: "inspect", label: "Inspect", glyph: "search" },
  { id: "code", label: "Code", glyph: "code" },
]);
/** By place: the tab that was last seen there. */
const seen = new Map();

export function Places() {
  const tab = tabs.find(({ id }) => id === preferences.value.tab) ?? tabs[0];
  const here = panes.value.inspector ? tab.place : "chat";
  seen.set(tab.place, tab.id);
  /** @param {string} place */
  const go = (place) => {
    if (place === "chat") toggle("inspector", false);
    else inspect(seen.get(place) ?? tabs.find((one) => one.place === place)?.id ?? tabs[0].id);
  };
  return h("nav", { class: "places", "aria-label": "Parts of the page" }, PLACES.map(({ id, label, glyph }) => h("button", {
    key: id, type: "button", class: "place", "aria-current": id === here ? "true" : undefined, onClick: () => go(id),
  }, h(Glyph, { name: glyph }), label)));
}
