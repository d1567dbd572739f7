/** Where formulas stand in Markdown: between delimiters that are clear, so that a price is never one. */

/** A formula has at most so many characters; what is longer has an opening that was none. */
const LONGEST = 2000;
const UP_TO = `{1,${LONGEST}}?`;

const BLOCK = new RegExp(String.raw`^ {0,3}(?:\$\$(?!\$)((?:[^$\\]|\\[\s\S])${UP_TO})\$\$|\\\[([\s\S]${UP_TO})\\\])[ \t]*(?:\n+|$)`);
const INLINE = new RegExp(String.raw`^(?:\\\(([\s\S]${UP_TO})\\\)|\\\[([\s\S]${UP_TO})\\\]|\$\$(?!\$)((?:[^$\\]|\\[\s\S])${UP_TO})\$\$)`);
/** One sign on each side: nothing but the formula touches them, and what follows is no word or number. */
const DOLLARS = new RegExp(String.raw`^\$(?![\s$])((?:[^$\\\n\x60]|\\[^\n])${UP_TO})(?<!\s)\$(?![\w$])`);
/** A number and words, as in "$5 (US$)": what money is written as. */
const PRICE = /^[\d.,]+\s+\(?[a-z]{2}/i;
const OPENS = /\\[([]|(?<![\w\\$])\$(?!\s)/;

/**
 * Where a paragraph ends because a formula begins, which must be whole: asked at each paragraph, so nothing behind its
 * end is looked at.
 * @param {string} src
 */
function blockStart(src) {
  const end = src.search(/\n[ \t]*\n/);
  const lines = /\n(?=\$\$|\\\[)/g;
  const paragraph = end < 0 ? src : src.slice(0, end);
  for (let found = lines.exec(paragraph); found; found = lines.exec(paragraph)) {
    if (BLOCK.test(src.slice(found.index + 1, found.index + LONGEST + 10))) return found.index + 1;
  }
  return undefined;
}

/**
 * @param {string} raw
 * @param {string} tex
 * @param {boolean} display
 */
const token = (raw, tex, display) => ({ type: "formula", raw, text: tex.trim(), display });

/** What marked is to know of formulas; both give tokens `{type: "formula", text, display, raw}`. */
export const formulas = [
  {
    name: "formulaBlock",
    level: /** @type {const} */ ("block"),
    start: blockStart,
    /** @param {string} src */
    tokenizer(src) {
      const found = BLOCK.exec(src);
      return found ? token(found[0], found[1] ?? found[2], true) : undefined;
    },
  },
  {
    name: "formula",
    level: /** @type {const} */ ("inline"),
    /** @param {string} src */
    start: (src) => OPENS.exec(src)?.index,
    /** @param {string} src */
    tokenizer(src) {
      const found = INLINE.exec(src);
      if (found) return token(found[0], found[1] ?? found[2] ?? found[3], found[1] === undefined);
      const signed = DOLLARS.exec(src);
      return signed && !PRICE.test(signed[1]) ? token(signed[0], signed[1], false) : undefined;
    },
  },
];
