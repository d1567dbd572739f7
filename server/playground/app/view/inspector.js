/** The inspector: what is asked for, and what came of it, in tabs. */
import { h } from "../core/ui.js";
import { lazy } from "../core/lazy.js";
import { IconButton } from "../core/glyphs.js";
import { current } from "../state/library.js";
import { preferences, prefer } from "../state/preferences.js";
import { tabs } from "../inspect/tabs.js";
import { isPhone, isWide, toggle } from "./panes.js";
import { TabList } from "./tablist.js";

/** By tab. */
const loaded = new Map(tabs.map(({ id, load }) => [id, lazy(async () => (await load()).default)]));

/** @param {{open: boolean}} props */
export function Inspector({ open }) {
  if (!open) return null;
  const { tab } = preferences.value;
  const talk = current.value;
  const chosen = tabs.find(({ id }) => id === tab) ?? tabs[0];
  const entries = isPhone.value ? tabs.filter(({ place }) => place === chosen.place) : tabs;
  // On a phone it is all that is seen, and so the page's main part, with headings above its own.
  return h(isPhone.value ? "main" : "aside", { class: "inspector", "aria-label": "Inspector" },
    isPhone.value && [h("h1", { class: "offscreen" }, "Playground"), h("h2", { class: "offscreen" }, "Inspector")],
    h("div", { class: "inspector-head" },
      h(TabList, { label: "Inspector", panel: "panel", entries, chosen: chosen.id, onChoose: (tab) => prefer({ tab }) }),
      !isWide.value && h(IconButton, { glyph: "close", label: "Close the inspector", onClick: () => toggle("inspector", false) }),
    ),
    h("div", { id: "panel", class: "panel", role: "tabpanel", "aria-labelledby": `tab-${chosen.id}`, tabIndex: 0 }, h(/** @type {any} */ (loaded.get(chosen.id)), { key: `${chosen.id} ${talk.id}`, talk })),
  );
}
