/** What keys do, wherever the focus is. No single letters: those belong to whoever types (WCAG 2.1.4). */
import { lazy } from "../core/lazy.js";
import { runs } from "../talk/runs.js";
import { stopShown } from "../state/saying.js";
import { begin, current } from "../state/library.js";
import { tabs } from "../inspect/tabs.js";
import { inspect, openOverlay, overlay, panes, toggle } from "./panes.js";

const Palette = lazy(async () => (await import("./palette.js")).Palette);

/** Listen; gives back what ends it. */
export function listenForKeys() {
  document.addEventListener("keydown", onKey);
  return () => document.removeEventListener("keydown", onKey);
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.defaultPrevented || event.isComposing || overlay.peek() || document.querySelector("dialog[open]")) return;
  const command = event.ctrlKey || event.metaKey;
  if (act(event, command)) event.preventDefault();
}

/**
 * @param {KeyboardEvent} event
 * @param {boolean} command
 * @returns {boolean} whether the key was ours
 */
function act(event, command) {
  const { key, altKey, shiftKey, code } = event;
  if (key === "Escape") return escape();
  if (command && !shiftKey && key.toLowerCase() === "k") return openOverlay(Palette), true;
  if (command && key === ".") return toggle("inspector"), true;
  if (command && !shiftKey && key.toLowerCase() === "b") return toggleHistory(), true;
  if (command && shiftKey && key.toLowerCase() === "o") return begin(), focusComposer(), true;
  const digit = altKey && !command ? /^Digit([1-9])$/.exec(code) : null;
  const tab = digit && tabs[Number(digit[1]) - 1];
  if (tab) return inspect(tab.id), true;
  if (altKey && (key === "ArrowUp" || key === "ArrowDown")) return walk(key === "ArrowUp" ? -1 : 1);
  return false;
}

/** The history closes with what had the focus in it. */
function toggleHistory() {
  const hadFocus = document.activeElement?.closest(".history");
  toggle("history");
  if (hadFocus) focusComposer();
}

function escape() {
  if (runs.peek().size) return stopShown(), true;
  for (const pane of /** @type {const} */ (["inspector", "history"])) {
    if (panes.peek()[pane] && window.matchMedia("(max-width: 1199px)").matches) return toggle(pane, false), true;
  }
  return false;
}

/** The focus, on the message before or after the one that has it. */
function walk(/** @type {number} */ step) {
  const path = current.peek().path.peek();
  const id = document.activeElement?.closest("[data-id]")?.getAttribute("data-id");
  const at = id ? path.indexOf(id) + step : step < 0 ? path.length - 1 : path.length;
  const next = at >= path.length ? document.querySelector("#composer textarea") : document.querySelector(`[data-id="${path[Math.max(0, at)]}"]`);
  if (next instanceof HTMLElement) next.focus();
  return true;
}

export function focusComposer() {
  requestAnimationFrame(() => {
    const box = document.querySelector("#composer textarea");
    if (box instanceof HTMLElement) box.focus();
  });
}
