/** A box for code, with line numbers and a place for what is wrong with it. */
import { h, useRef } from "../core/ui.js";

/**
 * Numbers of lines as one text, since of elements a long paste would need too many.
 * @param {number} from
 * @param {number} to the first that is not among them
 */
const numbers = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, index) => `${from + index}\n`).join("");

/**
 * @param {{label: string, value: string, rows?: number, placeholder?: string, fault?: string, line?: number, ok?: string,
 *          onInput: (text: string) => void}} props `line` is where the fault is, 0 if that is not known
 */
export function Editor({ label, value, rows = 12, placeholder, fault = "", line = 0, ok = "", onInput }) {
  const gutter = useRef(/** @type {HTMLElement | null} */ (null));
  const count = Math.max(rows, value.split("\n").length);
  /** @param {Event} event */
  const scroll = (event) => {
    if (gutter.current) gutter.current.scrollTop = /** @type {HTMLElement} */ (event.currentTarget).scrollTop;
  };
  return h("div", { class: "stack tight" },
    h("div", { class: `code-editor ${fault ? "wrong" : ""}` },
      h("div", { class: "gutter", ref: gutter, "aria-hidden": "true" }, numbers(1, line || count + 1), line > 0 && [h("span", { class: "wrong" }, line), "\n", numbers(line + 1, count + 1)]),
      h("textarea", { class: "code", "aria-label": label, "aria-invalid": fault !== "", rows, value, placeholder, spellcheck: false, wrap: "off", autocomplete: "off", autocapitalize: "off", onScroll: scroll, onInput: (/** @type {any} */ event) => onInput(event.currentTarget.value) }),
    ),
    fault && h("p", { class: "small fault", role: "alert" }, line > 0 && h("strong", {}, `Line ${line}: `), fault),
    !fault && ok && h("p", { class: "small fine", role: "status" }, ok),
  );
}
