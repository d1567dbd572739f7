/** Tabs: one of them is in the order of the keys, and the arrows lead to the others. */
import { h, useEffect, useRef } from "../core/ui.js";

/**
 * @param {object} props
 * @param {string} props.label
 * @param {string} props.panel the id of what the tabs show
 * @param {{id: string, label: string, title?: string}[]} props.entries ids are those of the elements behind `tab-`
 * @param {string} props.chosen
 * @param {(id: string) => void} props.onChoose
 */
export function TabList({ label, panel, entries, chosen, onChoose }) {
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => list.current?.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" }), [chosen]);
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.altKey) return;
    event.preventDefault();
    const next = entries[(entries.findIndex(({ id }) => id === chosen) + step + entries.length) % entries.length];
    onChoose(next.id);
    requestAnimationFrame(() => document.getElementById(`tab-${next.id}`)?.focus());
  };
  return h("div", { ref: list, class: "tabs", role: "tablist", "aria-label": label, onKeyDown: key }, entries.map(({ id, label: name, title }) => h("button", {
    key: id, id: `tab-${id}`, type: "button", role: "tab", class: "tab", title,
    "aria-selected": id === chosen, "aria-controls": panel, tabIndex: id === chosen ? 0 : -1, onClick: () => onChoose(id),
  }, name)));
}
