/**
 * A command of Windows' command line as its words: first as that line takes carets and quotes, then as a program takes
 * what is left (the rules of its C library). Every character keeps its place.
 */

/** @typedef {import("./shell.js").Word} Word */
/** @typedef {{text: string, at: number}} Letter */

/** What only the command line of Windows has: a caret before a quote or at a line's end. */
const CARETS = /\^["\r\n]/;
/** What it has not: texts in single quotes, lines that go on behind a backslash. */
const OF_BASH = /\s-[-\w]+\s*\$?'|\\\r?\n/;

/** @param {string} text */
export const isOfWindows = (text) => CARETS.test(text) && !OF_BASH.test(text);

/**
 * The words of the first command.
 * @param {string} text
 * @returns {Word[]}
 */
export function windowsWords(text) {
  const letters = typedLetters(text);
  /** @type {Word[]} */
  const words = [];
  /** @type {Word | null} */
  let word = null;
  let quoted = false;
  for (let index = 0; index < letters.length; index++) {
    const { text: letter, at } = letters[index];
    if (!quoted && /\s/.test(letter)) {
      word = null;
      continue;
    }
    if (!word) words.push((word = { text: "", at: [], start: at, unknown: null }));
    let slashes = 0;
    while (letters[index + slashes]?.text === "\\") slashes++;
    const closes = letters[index + slashes]?.text === '"';
    // Before a quote each two backslashes are one, and a last one makes it a character.
    const kept = closes ? slashes >> 1 : slashes;
    for (let step = 0; step < kept; step++) put(word, "\\", letters[index + step].at);
    if (closes) {
      const doubled = quoted && slashes % 2 === 0 && letters[index + slashes + 1]?.text === '"';
      index += slashes + (doubled ? 1 : 0);
      if (slashes % 2 || doubled) put(word, '"', letters[index].at);
      else quoted = !quoted;
    } else if (slashes) index += slashes - 1;
    else put(word, letter, at);
  }
  return words;
}

/** @param {Word} word @param {string} letter @param {number} at */
function put(word, letter, at) {
  word.text += letter;
  word.at.push(at);
}

/**
 * What the command line hands to a program: outside of quotes a caret takes the next character's meaning, be it the end
 * of the line.
 * @param {string} text
 * @returns {Letter[]}
 */
function typedLetters(text) {
  /** @type {Letter[]} */
  const letters = [];
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\r") continue;
    if (text[at] === "^" && !quoted) {
      at = next(text, at);
      if (text[at] === "\n") at = next(text, at); // the line goes on, and its first character is taken as it is
      if (at < text.length) letters.push({ text: text[at], at });
      continue;
    }
    if (text[at] === '"') quoted = !quoted;
    if (text[at] === "\n" || (!quoted && "&|".includes(text[at]))) {
      if (letters.some(({ text: letter }) => letter.trim())) break;
      continue;
    }
    letters.push({ text: text[at], at });
  }
  return letters;
}

/** @param {string} text @param {number} at */
function next(text, at) {
  return text[at + 1] === "\r" ? at + 2 : at + 1;
}
