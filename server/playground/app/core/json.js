/** JSON with places: where a text stops being JSON, and where each part of it stands. */

/** So deep a text may be nested; what is deeper was not written by a person. */
const DEEPEST = 400;
const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const WORDS = /true|false|null/y;
const IN_STRING = /["\\\u0000-\u001f]/g;
const ESCAPE = /\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/y;

/** A text that cannot be taken, and where. */
export class Refusal extends Error {
  /**
   * @param {string} message
   * @param {number} at offset in the text
   */
  constructor(message, at) {
    super(message);
    this.name = "Refusal";
    this.at = at;
  }
}

/**
 * The line of an offset, from 1.
 * @param {string} text
 * @param {number} at
 */
export const lineAt = (text, at) => text.slice(0, at).split("\n").length;

/**
 * The path of a member, as errors name it: `messages[0].content`.
 * @param {string} path
 * @param {string | number} step
 */
export const inside = (path, step) => (typeof step === "number" ? `${path}[${step}]` : path ? `${path}.${step}` : step);

/**
 * The value of a JSON text, and the offset of each part by its path (the whole is at `""`).
 * @param {string} text
 * @returns {{value: any, places: Map<string, number>}}
 * @throws {Refusal} where it is no JSON, or holds what would not come out as it went in
 */
export function readJson(text) {
  const reader = new Reader(text);
  const value = reader.value("", 0);
  reader.space();
  if (reader.at < text.length) throw reader.refusal("Nothing may follow the end of the JSON");
  return { value, places: reader.places };
}

class Reader {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.at = 0;
    /** @type {Map<string, number>} */
    this.places = new Map();
  }

  /** @param {string} message */
  refusal(message) {
    return new Refusal(message, this.at);
  }

  space() {
    this.take(SPACE);
  }

  /**
   * What a sticky expression finds here, and go behind it.
   * @param {RegExp} expression
   * @returns {string | null}
   */
  take(expression) {
    expression.lastIndex = this.at;
    const found = expression.exec(this.text);
    if (!found) return null;
    this.at += found[0].length;
    return found[0];
  }

  /**
   * @param {string} path
   * @param {number} depth
   * @returns {any}
   */
  value(path, depth) {
    this.space();
    this.places.set(path, this.at);
    if (depth > DEEPEST) throw this.refusal(`Nested deeper than ${DEEPEST} levels`);
    const first = this.text[this.at];
    if (first === "{") return this.object(path, depth);
    if (first === "[") return this.array(path, depth);
    if (first === '"') return this.string();
    const word = this.take(WORDS);
    if (word) return JSON.parse(word);
    const start = this.at;
    const number = this.take(NUMBER);
    if (number) return exact(number, start);
    throw this.refusal(first === undefined ? "The JSON ends too early" : `A JSON value cannot begin with ${shown(first)}`);
  }

  /**
   * @param {string} path
   * @param {number} depth
   */
  object(path, depth) {
    /** @type {[string, any][]} */
    const members = [];
    const names = new Set();
    for (this.at++; !this.closes("}", members.length); ) {
      if (this.text[this.at] !== '"') throw this.refusal("A name in double quotes must stand here");
      const start = this.at;
      const name = this.string();
      if (names.has(name)) throw new Refusal(`The name ${shown(name)} stands here twice`, start);
      names.add(name);
      this.space();
      if (this.text[this.at] !== ":") throw this.refusal("A colon must stand here");
      this.at++;
      members.push([name, this.value(inside(path, name), depth + 1)]);
    }
    return Object.fromEntries(members); // and not by assignment, for the sake of `__proto__`
  }

  /**
   * @param {string} path
   * @param {number} depth
   */
  array(path, depth) {
    /** @type {any[]} */
    const items = [];
    for (this.at++; !this.closes("]", items.length); ) items.push(this.value(inside(path, items.length), depth + 1));
    return items;
  }

  /**
   * Go behind the end, or behind the comma before the next item; whether it was the end.
   * @param {string} end
   * @param {number} before how many items there were
   */
  closes(end, before) {
    this.space();
    const next = this.text[this.at];
    if (next === end) return this.at++, true;
    if (next === undefined) throw this.refusal("The JSON ends too early");
    if (!before) return false;
    if (next !== ",") throw this.refusal(`A comma or ${end} must stand here`);
    this.at++;
    this.space();
    if (this.text[this.at] === end) throw this.refusal("Nothing follows the comma");
    return false;
  }

  /** @returns {string} */
  string() {
    const start = this.at++;
    for (;;) {
      IN_STRING.lastIndex = this.at;
      const found = IN_STRING.exec(this.text);
      if (!found) throw new Refusal("The string that begins here has no end", start);
      this.at = found.index;
      if (found[0] === '"') return JSON.parse(this.text.slice(start, ++this.at));
      if (found[0] !== "\\") throw this.refusal("A line end or control character in a string must be escaped");
      if (!this.take(ESCAPE)) throw this.refusal("This is no escape of JSON");
    }
  }
}

/**
 * @param {string} number
 * @param {number} at
 */
function exact(number, at) {
  const value = Number(number);
  const isWhole = /^-?\d+$/.test(number);
  if (!Number.isFinite(value) || (isWhole && BigInt(number) !== BigInt(value))) throw new Refusal(`A browser cannot hold the number ${number} exactly`, at);
  return value;
}

/** @param {string} text */
const shown = (text) => JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}…` : text);
