/** Everything that can be done, found by typing; and the keys for it. */
import { h, useState } from "../core/ui.js";
import { lazy } from "../core/lazy.js";
import { tabs } from "../inspect/tabs.js";
import { begin, current, listed, show } from "../state/library.js";
import { Dialog } from "./dialog.js";
import { compare, nextTheme, openShare } from "./doing.js";
import { focusComposer } from "./keys.js";
import { inspect, openOverlay, toggle } from "./panes.js";

const ModelDialog = lazy(async () => (await import("./models.js")).ModelDialog);
const ServerDialog = lazy(async () => (await import("./server.js")).ServerDialog);

/** @typedef {{name: string, key?: string, act: () => void}} Command */

/** So many conversations are offered. */
const MOST_TALKS = 30;

/** What keys do that belong to no command. */
const OTHER_KEYS = [
  ["Enter", "Send; on a phone, and with Shift, a new line"],
  ["Ctrl Enter", "Send"],
  ["Esc", "Stop the answers"],
  ["↑ in an empty box", "Bring back what was sent last"],
  ["Alt ↑, Alt ↓", "Go from message to message"],
];

/** @returns {Command[]} */
function commands() {
  return [
    { name: "New conversation", key: "Ctrl Shift O", act: () => (begin(), focusComposer()) },
    { name: "Choose the model", act: () => openOverlay(ModelDialog, { talk: current.peek() }) },
    { name: "Compare: add a column", act: compare },
    ...tabs.map(({ id, label }, index) => ({ name: `Inspector: ${label}`, key: `Alt ${index + 1}`, act: () => inspect(id) })),
    { name: "Open or close the inspector", key: "Ctrl .", act: () => toggle("inspector") },
    { name: "Open or close the history", key: "Ctrl B", act: () => toggle("history") },
    { name: "The server at work", act: () => openOverlay(ServerDialog) },
    { name: "Share, export, import", act: openShare },
    { name: "Change the colours", act: nextTheme },
    ...listed.value.slice(0, MOST_TALKS).map(({ id, title }) => ({ name: `Go to: ${title || "Untitled"}`, act: () => void show(id) })),
  ];
}

/** @param {{onClose: () => void}} props */
export function Palette({ onClose }) {
  const [search, setSearch] = useState("");
  const [at, setAt] = useState(0);
  const found = commands().filter(({ name }) => name.toLowerCase().includes(search.toLowerCase()));
  /** @param {Command | undefined} command */
  const run = (command) => {
    if (!command) return;
    onClose();
    command.act();
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    if (event.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) setAt((at + step + found.length) % Math.max(1, found.length));
    else if (event.key === "Enter") run(found[at]);
    else return;
    event.preventDefault();
  };
  return h(Dialog, { title: "What can be done", onClose },
    h("input", {
      class: "input", autoFocus: true, autocomplete: "off", placeholder: "Type to search", "aria-label": "Search", role: "combobox",
      "aria-expanded": true, "aria-controls": "commands", "aria-activedescendant": found[at] ? `command-${at}` : undefined,
      value: search, onInput: (/** @type {any} */ event) => (setSearch(event.currentTarget.value), setAt(0)), onKeyDown: key,
    }),
    h("ul", { id: "commands", class: "commands", role: "listbox", "aria-label": "Commands" }, found.map((command, index) => h("li", {
      key: command.name, id: `command-${index}`, role: "option", "aria-selected": index === at, onClick: () => run(command), onMouseMove: () => setAt(index),
    }, h("span", {}, command.name), command.key && h("kbd", {}, command.key)))),
    !search && h("dl", { class: "keys" }, OTHER_KEYS.map(([name, what]) => h("div", { key: name }, h("dt", {}, h("kbd", {}, name)), h("dd", { class: "small muted" }, what)))),
  );
}
