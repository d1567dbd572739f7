/**
 * The tabs of the inspector, in their order. Each is read when it is first opened.
 *
 * @typedef {object} Tab
 * @property {string} id
 * @property {string} label
 * @property {"settings" | "inspect" | "code"} place of the bar at a phone's foot, which leads to it
 * @property {() => Promise<{default: (props: {talk: import("../talk/talk.js").Talk}) => any}>} load
 */

/** @type {Tab[]} */
export const tabs = [
  { id: "parameters", label: "Settings", place: "settings", load: () => import("./parameters.js") },
  { id: "format", label: "Format", place: "settings", load: () => import("./format.js") },
  { id: "tools", label: "Tools", place: "settings", load: () => import("./tools.js") },
  { id: "tokens", label: "Tokens", place: "inspect", load: () => import("./tokens.js") },
  { id: "prompt", label: "Prompt", place: "inspect", load: () => import("./prompt.js") },
  { id: "raw", label: "Raw", place: "inspect", load: () => import("./raw.js") },
  { id: "code", label: "Code", place: "code", load: () => import("./code.js") },
];
