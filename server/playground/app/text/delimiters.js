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
/** What no prose has: a command, a brace that is meant, an index in braces. */
const TEX = /\\[a-zA-Z{},;:!|\\]|[\^_]\{/;
const OPENED = /^ {0,3}(\$\$(?!\$)|\\[([])/;
const OPENED_IN_LINE = /^\$(?![\s$\d])(?:[^$\\\n\x60]|\\[^\n])*\\?$/;
/** An escape that Markdown would take the backslash of. */
const ESCAPE = /\\[{}|,;:!\\]/;
const CLOSES = new Map([["$$", "$$"], ["\\[", "\\]"], ["\\(", "\\)"]]);
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
    const begun = src.slice(found.index + 1, found.index + LONGEST + 10);
    if (BLOCK.test(begun) || opened(begun)) return found.index + 1;
  }
  return undefined;
}

/**
 * @param {string} raw
 * @param {string} tex
 * @param {boolean} display
 */
const token = (raw, tex, display) => ({ type: "formula", raw, text: tex.trim(), display });

/**
 * A formula that has begun and not ended, as while it is written: up to the paragraph's end, as it was written.
 * @param {string} src
 */
function opened(src) {
  const start = OPENED.exec(src);
  if (!start) return undefined;
  const end = src.slice(0, LONGEST).search(/\n[ \t]*\n/);
  const raw = end < 0 ? src : src.slice(0, end + 1);
  const body = raw.slice(start[0].length);
  if (raw.length > LONGEST || body.includes(CLOSES.get(start[1]) ?? "") || !TEX.test(body)) return undefined;
  return { type: "opened", raw, text: raw.trim() };
}

/**
 * The same between single signs, which has no more than its line.
 * @param {string} src
 */
function openedInLine(src) {
  const raw = src.slice(0, LONGEST).split("\n", 1)[0];
  return OPENED_IN_LINE.test(raw) && ESCAPE.test(raw) ? { type: "opened", raw, text: raw } : undefined;
}

/**
 * What marked is to know of formulas: tokens `{type: "formula", text, display, raw}`, and `{type: "opened", text, raw}`
 * of what has no end yet.
 */
export const formulas = [
  {
    name: "formulaBlock",
    level: /** @type {const} */ ("block"),
    start: blockStart,
    /** @param {string} src */
    tokenizer(src) {
      const found = BLOCK.exec(src);
      return found ? token(found[0], found[1] ?? found[2], true) : /^ {0,3}\\\(/.test(src) ? undefined : opened(src);
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
      return signed && !PRICE.test(signed[1]) ? token(signed[0], signed[1], false) : (opened(src) ?? openedInLine(src));
    },
  },
];

/** All that marked is to know; a line of `=` or `-` within a formula makes no heading of what stands before it. */
export const reading = {
  extensions: formulas,
  tokenizer: {
    /** @param {string} src @returns {undefined | false} no heading, or one where marked finds it */
    lheading: (src) => (blockStart(src) === undefined ? false : undefined),
  },
};
