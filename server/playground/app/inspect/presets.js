/** Settings under a name, to be taken again in any conversation. */
import { h, useState } from "../core/ui.js";
import { IconButton } from "../core/glyphs.js";
import { presets, removePreset, savePreset } from "../state/presets.js";

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export function Presets({ talk }) {
  const [naming, setNaming] = useState(false);
  const [chosen, setChosen] = useState("");
  /** @param {string} id */
  const take = (id) => {
    setChosen(id);
    const preset = presets.peek().find((one) => one.id === id);
    if (preset) talk.changeSettings(structuredClone({ params: preset.settings.params, format: preset.settings.format, tools: preset.settings.tools }));
  };
  /** @param {SubmitEvent} event */
  const save = (event) => {
    event.preventDefault();
    const name = String(new FormData(/** @type {HTMLFormElement} */ (event.currentTarget)).get("name") ?? "").trim();
    setChosen(savePreset(name, talk.settings.peek()));
    setNaming(false);
  };
  if (naming) {
    return h("form", { class: "row", onSubmit: save },
      h("input", { class: "input small", name: "name", required: true, autoFocus: true, autocomplete: "off", maxLength: 80, placeholder: "Name", "aria-label": "Name of the preset" }),
      h("button", { class: "button small primary" }, "Save"),
      h("button", { type: "button", class: "button small", onClick: () => setNaming(false) }, "Cancel"),
    );
  }
  return h("div", { class: "row" },
    h("select", { class: "input small", "aria-label": "Preset", value: chosen, disabled: !presets.value.length, onChange: (/** @type {any} */ event) => take(event.currentTarget.value) },
      h("option", { value: "" }, presets.value.length ? "Take a preset" : "No presets yet"),
      presets.value.map(({ id, name }) => h("option", { key: id, value: id }, name)),
    ),
    chosen && h(IconButton, { glyph: "trash", label: "Delete this preset", small: true, onClick: () => (removePreset(chosen), setChosen("")) }),
    h("button", { type: "button", class: "button small", onClick: () => setNaming(true) }, "Save as…"),
  );
}
