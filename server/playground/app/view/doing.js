/** What the bar offers, and on phones the drawer of the history. */
import { lazy } from "../core/lazy.js";
import { addColumn } from "../state/compare.js";
import { columns } from "../state/library.js";
import { prefer, preferences } from "../state/preferences.js";
import { focusComposer } from "./keys.js";
import { isWide, openOverlay } from "./panes.js";

const ShareDialog = lazy(async () => (await import("./share.js")).ShareDialog);
const THEMES = /** @type {const} */ (["auto", "light", "dark"]);
/** From so many columns on the history gives its place to them. */
const CROWDED = 3;

export function nextTheme() {
  const { theme } = preferences.peek();
  prefer({ theme: THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length] });
}

export function compare() {
  addColumn();
  if (isWide.peek() && columns.peek().length >= CROWDED) prefer({ history: false });
  focusComposer();
}

export const openShare = () => openOverlay(ShareDialog);
