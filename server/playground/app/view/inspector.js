/** The inspector: what is asked for, and what came of it, in tabs. */
import { h, useEffect, useRef } from "../core/ui.js";
import { lazy } from "../core/lazy.js";
import { IconButton } from "../core/glyphs.js";
import { current } from "../state/library.js";
import { preferences, prefer } from "../state/preferences.js";
import { tabs } from "../inspect/tabs.js";
import { isWide, toggle } from "./panes.js";

/** By tab. */
const loaded = new Map(tabs.map(({ id, load }) => [id, lazy(async () => (await load()).default)]));

/** @param {{open: boolean}} props */
export function Inspector({ open }) {
  if (!open) return null;
  const { tab } = preferences.value;
  const talk = current.value;
  const chosen = tabs.find(({ id }) => id === tab) ?? tabs[0];
  return h("aside", { class: "inspector", "aria-label": "Inspector" },
    h("div", { class: "inspector-head" },
      h(TabList, { chosen: chosen.id }),
      !isWide.value && h(IconButton, { glyph: "close", label: "Close the inspector", onClick: () => toggle("inspector", false) }),
    ),
    h("div", { id: "panel", class: "panel", role: "tabpanel", "aria-labelledby": `tab-${chosen.id}`, tabIndex: 0 }, h(/** @type {any} */ (loaded.get(chosen.id)), { key: `${chosen.id} ${talk.id}`, talk })),
  );
}

/** @param {{chosen: string}} props */
function TabList({ chosen }) {
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => list.current?.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" }), [chosen]);
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.altKey) return;
    event.preventDefault();
    const next = tabs[(tabs.findIndex(({ id }) => id === chosen) + step + tabs.length) % tabs.length];
    prefer({ tab: next.id });
    requestAnimationFrame(() => document.getElementById(`tab-${next.id}`)?.focus());
  };
  return h("div", { ref: list, class: "tabs", role: "tablist", "aria-label": "Inspector", onKeyDown: key }, tabs.map(({ id, label }) => h("button", {
    key: id, id: `tab-${id}`, type: "button", role: "tab", class: "tab",
    "aria-selected": id === chosen, "aria-controls": "panel", tabIndex: id === chosen ? 0 : -1, onClick: () => prefer({ tab: id }),
  }, label)));
}
