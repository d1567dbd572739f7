/** Small pictures for buttons, as paths of 24 by 24 drawn with a line. */
import { h } from "./ui.js";

const PATHS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20l4-1L19 8l-3-3L5 16zM14 7l3 3",
  retry: "M20 12a8 8 0 1 1-2.6-5.9M20 3v4.5h-4.5",
  forward: "M5 6l7 6-7 6zM13 6l7 6-7 6z",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  up: "M6 14.5l6-6 6 6",
  down: "M6 9.5l6 6 6-6",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l1 13h8l1-13M10.5 11v5.5M13.5 11v5.5",
  image: "M4 5h16v14H4zM4 16l4.5-5 4 4.5 3-3L20 16M15.5 9.5h.01",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  columns: "M4 5h7v14H4zM13 5h7v14h-7z",
  share: "M12 15V4M8 7.5L12 4l4 3.5M5 12v8h14v-8",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  chat: "M4 5h16v11H10l-4 4v-4H4z",
  search: "M11 18a7 7 0 1 1 0-14 7 7 0 0 1 0 14zM16 16l4.5 4.5",
  chart: "M4 20h16M7 16v-5M12 16V6M17 16v-8",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  wrench: "M14 6a4 4 0 0 1 5-1l-3 3 1 2 2 1 3-3a4.5 4.5 0 0 1-6 5L9 20l-4-4 7-7a4 4 0 0 1 2-3z",
  thought: "M9 18h6M10 21h4M8.5 15a6 6 0 1 1 7 0c-.6.5-.9 1.2-.9 2H9.4c0-.8-.3-1.500-.9-2z",
  code: "M8.500 7l-5 5 5 5M15.500 7l5 5-5 5",
  key: "M14 10a4 4 0 1 0-4 4 4 4 0 0 0 3.400-2H21v3M17.500 12v2.500",
};

/**
 * A picture; what it means must be said beside it or by its button.
 * @param {{name: keyof typeof PATHS}} props
 */
export function Glyph({ name }) {
  return h("svg", { class: "glyph", viewBox: "0 0 24 24", "aria-hidden": "true" }, h("path", { d: PATHS[name] }));
}

/**
 * A button with a picture and a name.
 * @param {{glyph: keyof typeof PATHS, label: string, small?: boolean, class?: string, [attribute: string]: any}} props
 */
export function IconButton({ glyph, label, small, class: more = "", ...rest }) {
  return h(
    "button",
    { type: "button", title: label, "aria-label": label, class: `button quiet icon ${small ? "small" : ""} ${more}`, ...rest },
    h(Glyph, { name: glyph }),
  );
}
