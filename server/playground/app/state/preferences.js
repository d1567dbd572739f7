/** What a person chose of the page itself: kept by the browser, the same for all conversations. */
import { effect, signal } from "../core/ui.js";

const NAME = "headrace-preferences";

/** @type {{theme: "auto" | "light" | "dark", history: boolean, inspector: boolean, tab: string, width: number, inTurn: boolean, language: string}} */
const FIRST = { theme: "auto", history: true, inspector: true, tab: "parameters", width: 360, inTurn: false, language: "" };

function stored() {
  try {
    return { ...FIRST, ...JSON.parse(localStorage.getItem(NAME) ?? "{}") };
  } catch {
    return FIRST; // no storage, or another's
  }
}

export const preferences = signal(/** @type {typeof FIRST} */ (stored()));

/** @param {Partial<typeof FIRST>} change */
export function prefer(change) {
  preferences.value = { ...preferences.peek(), ...change };
}

effect(() => {
  const { theme } = preferences.value;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(NAME, JSON.stringify(preferences.value));
  } catch {
    // then it is forgotten with this page
  }
});
