/**
 * The tabs of the inspector, in their order. Each is read when it is first opened.
 *
 * @typedef {object} Tab
 * @property {string} id
 * @property {string} label
 * @property {() => Promise<{default: (props: {talk: import("../talk/talk.js").Talk}) => any}>} load
 */

/** @type {Tab[]} */
export const tabs = [
  { id: "parameters", label: "Settings", load: () => import("./parameters.js") },
  { id: "format", label: "Format", load: () => import("./format.js") },
  { id: "tools", label: "Tools", load: () => import("./tools.js") },
  { id: "tokens", label: "Tokens", load: () => import("./tokens.js") },
  { id: "prompt", label: "Prompt", load: () => import("./prompt.js") },
  { id: "raw", label: "Raw", load: () => import("./raw.js") },
  { id: "code", label: "Code", load: () => import("./code.js") },
];
