/** Which parts of the page are open. On wide screens that is a preference; on others they lie over the conversation. */
import { computed, signal } from "../core/ui.js";
import { prefer, preferences } from "../state/preferences.js";

const NO_INSPECTOR_BESIDE = window.matchMedia("(max-width: 1199px)");
const PHONE = window.matchMedia("(max-width: 767px)");

/** Whether history and inspector stand beside the conversation. */
export const isWide = signal(!NO_INSPECTOR_BESIDE.matches);
/** Whether there is one column, and Enter makes a new line. */
export const isPhone = signal(PHONE.matches);
NO_INSPECTOR_BESIDE.addEventListener("change", () => (isWide.value = !NO_INSPECTOR_BESIDE.matches));
PHONE.addEventListener("change", () => (isPhone.value = PHONE.matches));

/** What lies over the conversation, where nothing stands beside it. */
const over = signal(/** @type {"history" | "inspector" | null} */ (null));

export const panes = computed(() => {
  const { history, inspector } = preferences.value;
  if (isWide.value) return { history, inspector };
  return { history: over.value === "history", inspector: over.value === "inspector" };
});

/**
 * @param {"history" | "inspector"} pane
 * @param {boolean} [open] the other way round if not given
 */
export function toggle(pane, open = !panes.peek()[pane]) {
  if (isWide.peek()) prefer({ [pane]: open });
  else over.value = open ? pane : null;
}

/**
 * Open the inspector at a tab.
 * @param {string} tab
 */
export function inspect(tab) {
  prefer({ tab });
  toggle("inspector", true);
}

/** A dialog over the page: a component and what it is given. */
export const overlay = signal(/** @type {{component: any, props: any} | null} */ (null));

/**
 * @param {any} component gets `onClose` beside its props
 * @param {any} [props]
 */
export function openOverlay(component, props = {}) {
  overlay.value = { component, props: { ...props, onClose: () => (overlay.value = null) } };
}
