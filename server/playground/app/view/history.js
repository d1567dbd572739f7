/** The conversations that are kept. */
import { h, useState } from "../core/ui.js";
import { Glyph, IconButton } from "../core/glyphs.js";
import { preferences } from "../state/preferences.js";
import { begin, columns, forget, listed, show } from "../state/library.js";
import { focusComposer } from "./keys.js";
import { compare, nextTheme, openShare } from "./doing.js";
import { isPhone, isWide, toggle } from "./panes.js";

const DAY_MS = 86_400_000;

/** @param {{open: boolean}} props */
export function History({ open }) {
  const [search, setSearch] = useState("");
  const found = listed.value.filter((record) => record.title.toLowerCase().includes(search.toLowerCase()));
  const leave = () => isWide.peek() || toggle("history", false);
  /** @param {string} id */
  const choose = (id) => void show(id).then(leave);
  if (!open) return null;
  return h("nav", { class: "history", "aria-label": "Conversations" },
    h("div", { class: "history-head" },
      h("button", { type: "button", class: "button grow", onClick: () => (begin(), leave(), focusComposer()) }, h(Glyph, { name: "plus" }), "New conversation"),
      !isWide.value && h(IconButton, { glyph: "close", label: "Close the history", onClick: leave }),
    ),
    listed.value.length > 4 && h("div", { class: "history-search" }, h("input", { class: "input small", type: "search", placeholder: "Search", "aria-label": "Search the conversations", value: search, onInput: (/** @type {any} */ event) => setSearch(event.currentTarget.value) })),
    found.length
      ? h("ul", {}, withDays(found).map(({ day, record }) => h("li", { key: record.id },
          day && h("h2", {}, day),
          h("div", { class: `entry ${record.id === columns.value[0].id ? "shown" : ""}` },
            h("button", { type: "button", class: "title", "aria-current": record.id === columns.value[0].id ? "true" : undefined, onClick: () => choose(record.id) },
              record.columns.length > 0 && h(Glyph, { name: "columns" }),
              h("span", {}, record.title || record.draft.text || "Untitled")),
            h(IconButton, { glyph: "trash", label: `Delete “${record.title || "Untitled"}”`, small: true, onClick: () => void forget(record.id) }),
          ),
        )))
      : h("p", { class: "muted small empty grow" }, listed.value.length ? "Nothing found." : "What you ask is kept in this browser and listed here."),
    isPhone.value && h("div", { class: "history-foot" },
      h("button", { type: "button", class: "button quiet", onClick: () => (leave(), compare()) }, h(Glyph, { name: "columns" }), "Compare"),
      h("button", { type: "button", class: "button quiet", onClick: () => (leave(), openShare()) }, h(Glyph, { name: "share" }), "Share, export, import"),
      h("button", { type: "button", class: "button quiet", onClick: nextTheme }, h(Glyph, { name: "theme" }), `Colours: ${preferences.value.theme}`),
    ),
  );
}

/**
 * Each record, and before the first of a day or month its name.
 * @param {import("../talk/types.js").TalkRecord[]} found
 */
function withDays(found) {
  let last = "";
  return found.map((record) => {
    const day = dayOf(record.updated);
    const isNew = day !== last;
    last = day;
    return { day: isNew ? day : "", record };
  });
}

/** @param {number} time */
function dayOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY_MS) return "Yesterday";
  if (time >= today - 7 * DAY_MS) return "Last 7 days";
  return new Date(time).toLocaleDateString("en-GB", { month: "long", year: "numeric" });
}
