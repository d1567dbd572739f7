/** Values as literals of a language, laid out as people do. */

/** Longer lines are broken where they can be. */
const WIDTH = 76;

/** An expression of the program in the place of a value. */
export class Expression {
  /** @param {string} code */
  constructor(code) {
    this.code = code;
  }
}

/**
 * @typedef {object} Style
 * @property {string} none
 * @property {string} yes
 * @property {string} no
 * @property {string} indent
 * @property {[string, string]} braces of an object on one line
 * @property {"," | ""} last what stands behind the last item of many lines
 * @property {(name: string) => string} name of an object's member
 */

/** @type {Style} */
export const PYTHON = { none: "None", yes: "True", no: "False", indent: "    ", braces: ["{", "}"], last: ",", name: string };

/** @type {Style} */
export const PLAIN_JSON = { none: "null", yes: "true", no: "false", indent: "  ", braces: ["{", "}"], last: "", name: string };

const RESERVED_NAMES = new Set(["__proto__"]);

/** @type {Style} */
export const JAVASCRIPT = {
  none: "null", yes: "true", no: "false", indent: "  ", braces: ["{ ", " }"], last: ",",
  // Written plainly, this one name would set the object's prototype.
  name: (name) => (RESERVED_NAMES.has(name) ? `[${string(name)}]` : /^[A-Za-z_$][\w$]*$/.test(name) ? name : string(name)),
};

/**
 * Characters that one would not see, or that would turn the text around them: line ends of Unicode, marks of direction,
 * halves of characters.
 */
const UNSEEN = /[\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/**
 * A string between double quotes, in which one sees every character. These escapes mean the same in JSON, Python and
 * JavaScript.
 * @param {string} text
 */
export function string(text) {
  return JSON.stringify(text).replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/**
 * @param {any} value a JSON value, or an `Expression` in it
 * @param {Style} style
 * @param {string} [indent] of the line it stands in
 * @param {number} [taken] characters of that line that are taken
 * @returns {string}
 */
export function literal(value, style, indent = "", taken = indent.length) {
  const line = onOneLine(value, style);
  if (taken + line.length <= WIDTH || value === null || typeof value !== "object" || value instanceof Expression) return line;
  const inner = indent + style.indent;
  const isArray = Array.isArray(value);
  const items = isArray
    ? value.map((item) => literal(item, style, inner, inner.length + 1))
    : Object.entries(value).map(([name, item]) => member(name, item, style, inner));
  if (!items.length) return line;
  const [open, close] = isArray ? "[]" : "{}";
  return `${open}\n${inner}${items.join(`,\n${inner}`)}${style.last}\n${indent}${close}`;
}

/**
 * @param {string} name
 * @param {any} value
 * @param {Style} style
 * @param {string} indent
 */
function member(name, value, style, indent) {
  const head = `${style.name(name)}: `;
  return head + literal(value, style, indent, indent.length + head.length + 1);
}

/**
 * @param {any} value
 * @param {Style} style
 * @returns {string}
 */
function onOneLine(value, style) {
  if (value === null) return style.none;
  if (value === true) return style.yes;
  if (value === false) return style.no;
  if (typeof value === "string") return string(value);
  if (value instanceof Expression) return value.code;
  if (Array.isArray(value)) return `[${value.map((item) => onOneLine(item, style)).join(", ")}]`;
  // JSON.stringify knows what of numbers is JSON, as for negative zero.
  if (typeof value !== "object") return JSON.stringify(value);
  const members = Object.entries(value).map(([name, item]) => `${style.name(name)}: ${onOneLine(item, style)}`);
  return members.length ? style.braces.join(members.join(", ")) : "{}";
}
