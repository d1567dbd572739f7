/** Settings under a name, kept by the browser. */
import { signal } from "../core/ui.js";
import { newId } from "../core/ids.js";
import { readAll, write } from "./database.js";

/** @typedef {{id: string, name: string, settings: import("../talk/types.js").Settings}} Preset */

/** By name. */
export const presets = signal(/** @type {Preset[]} */ ([]));

const NAME_ORDER = new Intl.Collator("en", { numeric: true });

/** @param {Preset[]} list */
const sorted = (list) => [...list].sort((a, b) => NAME_ORDER.compare(a.name, b.name));

// A browser that keeps nothing has none.
readAll("presets").then((kept) => (presets.value = sorted(kept)), () => {});

/**
 * Keep settings under a name, in the place of those that had it; the preset's id.
 * @param {string} name
 * @param {import("../talk/types.js").Settings} settings
 */
export function savePreset(name, settings) {
  const old = presets.peek().find((preset) => preset.name === name);
  const preset = { id: old?.id ?? newId(), name, settings: structuredClone(settings) };
  presets.value = sorted([...presets.peek().filter(({ id }) => id !== preset.id), preset]);
  write([{ store: "presets", put: preset }]).catch(() => {});
  return preset.id;
}

/** @param {string} id */
export function removePreset(id) {
  presets.value = presets.peek().filter((preset) => preset.id !== id);
  write([{ store: "presets", remove: id }]).catch(() => {});
}
