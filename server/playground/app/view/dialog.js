/** A native dialog: the browser keeps the focus in it, closes it on Escape, and gives the focus back. */
import { h, useEffect, useRef } from "../core/ui.js";
import { IconButton } from "../core/glyphs.js";

/** @param {{title: string, onClose: () => void, wide?: boolean, children?: any}} props */
export function Dialog({ title, onClose, wide, children }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => before instanceof HTMLElement && before.isConnected && before.focus();
  }, []);
  /** @param {MouseEvent} event */
  const leave = (event) => event.target === dialog.current && onClose();
  return h("dialog", { ref: dialog, class: wide ? "wide" : "", "aria-label": title, onClose, onMouseDown: leave },
    h("div", { class: "dialog-head" }, h("h2", {}, title), h(IconButton, { glyph: "close", label: "Close", onClick: onClose })),
    h("div", { class: "dialog-body" }, children),
  );
}
