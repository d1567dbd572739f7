/** Notices at the foot of the page, and what screen readers are told. */
import { h } from "../core/ui.js";
import { IconButton } from "../core/glyphs.js";
import { dismiss, notices, status } from "../state/notices.js";

export function Notices() {
  return h("div", { class: "notices" },
    h("div", { class: "offscreen", role: "status" }, status.value),
    h("div", { role: "status" }, notices.value.map(({ id, text, action }) => h("div", { key: id, class: "notice" },
      h("span", {}, text),
      action && h("button", { type: "button", class: "button small", onClick: () => (action.act(), dismiss(id)) }, action.label),
      h(IconButton, { glyph: "close", label: "Dismiss", small: true, onClick: () => dismiss(id) }),
    ))),
  );
}
