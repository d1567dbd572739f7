/** The body of a request, from a curl command or as it is. */
import { readJson, Refusal } from "../core/json.js";
import { commandsOf } from "./shell.js";
import { checkBody } from "./shape.js";
import { isOfWindows, windowsWords } from "./windows.js";

/** @typedef {import("./shell.js").Word} Word */
/** @typedef {import("./shell.js").Command} Command */

/** Options of curl with a value of their own that do not matter to the body. */
const WITH_VALUE = new Set([
  ..."HXuoAebcmxwKCDEQrtUyYzP",
  "header", "request", "user", "output", "user-agent", "referer", "cookie", "cookie-jar", "max-time", "connect-timeout", "proxy",
  "write-out", "config", "retry", "retry-delay", "retry-max-time", "cacert", "capath", "cert", "key", "resolve", "connect-to",
  "unix-socket", "interface", "proxy-user", "noproxy", "oauth2-bearer", "limit-rate", "max-redirs", "url", "ciphers", "aws-sigv4",
  "dump-header", "trace", "trace-ascii", "stderr", "expect100-timeout", "keepalive-time", "tls-max", "variable",
]);
const DATA = new Set(["d", "data", "data-ascii", "data-raw", "data-binary", "json"]);
/** @type {Record<string, string>} */
const REFUSED = {
  F: "A form is no request for a chat", form: "A form is no request for a chat", "data-urlencode": "A body that is encoded for addresses is no JSON",
  T: "The file cannot be read from here; paste what it holds", "upload-file": "The file cannot be read from here; paste what it holds",
  G: "The request must be a POST", get: "The request must be a POST",
};

/**
 * @param {string} text
 * @returns {Record<string, any>}
 * @throws {Refusal}
 */
export function bodyOf(text) {
  const start = text.search(/\S/);
  if (start < 0) throw new Refusal("Paste a curl command, or the JSON body of a request", 0);
  if ("{[\"".includes(text[start])) return read(text, (offset) => offset);
  const commands = isOfWindows(text) ? [{ words: windowsWords(text), input: null, piped: false }] : commandsOf(text);
  const index = commands.findIndex((command) => programOf(command).length > 0);
  if (index < 0) throw new Refusal("Neither a curl command nor JSON stands here", start);
  const { text: data, at, start: begin, unknown } = dataOf(programOf(commands[index]), inputOf(commands, index));
  if (unknown) throw new Refusal(`Only a shell knows ${unknown.name}; put the value itself there`, unknown.at);
  return read(data, (offset) => at[Math.min(offset, at.length - 1)] ?? begin);
}

/**
 * The words of a command behind `curl`; none if it is another program.
 * @param {Command} command
 */
function programOf({ words }) {
  const at = words.findIndex(({ text }) => /(^|\/)curl(\.exe)?$/.test(text));
  const before = words.slice(0, Math.max(0, at)).map(({ text }) => text);
  return at >= 0 && before.every((word) => /^(\$|%|>|#|[A-Z]:\\[^>]*>|sudo|time|env|\w+=.*)$/s.test(word)) ? words.slice(at) : [];
}

/**
 * What a command reads: a here-document, or what the command before it in the pipe writes.
 * @param {Command[]} commands
 * @param {number} index
 * @returns {Word | null}
 */
function inputOf(commands, index) {
  const { input } = commands[index];
  const before = commands[index - 1];
  if (input || !before?.piped) return input;
  const [program, ...rest] = before.words;
  if (program.text === "cat" && !rest.length) return before.input;
  const said = rest.filter(({ text }) => !/^-[neE]+$/.test(text) && text !== "%s" && text !== "%s\\n");
  if ((program.text === "echo" || program.text === "printf") && said.length === 1) return said[0];
  return { text: "", at: [], start: program.start, unknown: { name: `what ${program.text} writes`, at: program.start } };
}

/**
 * The data that curl would send.
 * @param {Word[]} words from `curl` on
 * @param {Word | null} input
 * @returns {Word}
 */
function dataOf(words, input) {
  /** @type {Word | null} */
  let data = null;
  for (let index = 1; index < words.length; index++) {
    const word = words[index];
    for (const { name, value } of optionsOf(word)) {
      if (REFUSED[name]) throw new Refusal(REFUSED[name], word.start);
      if (!DATA.has(name) && !WITH_VALUE.has(name)) continue;
      const given = value ?? words[++index];
      if (!given) throw new Refusal(`The option ${word.text} wants a value`, word.start);
      if (DATA.has(name)) data = joined(data, name === "data-raw" ? given : contentOf(given, name, input), name === "json" ? "" : "&");
    }
  }
  if (!data) throw new Refusal("The command sends no body", words[0].start);
  return data;
}

/**
 * The options that a word holds: one long one, or short ones of which the last may have its value behind it.
 * @param {Word} word
 * @returns {{name: string, value: Word | null}[]}
 */
function optionsOf(word) {
  const { text } = word;
  if (text.startsWith("--")) return [{ name: text.slice(2), value: null }];
  if (!text.startsWith("-") || text.length < 2) return [];
  const options = [];
  for (let at = 1; at < text.length; at++) {
    const name = text[at];
    const takes = DATA.has(name) || WITH_VALUE.has(name);
    const rest = at + 1 < text.length ? { ...word, text: text.slice(at + 1), at: word.at.slice(at + 1), start: word.at[at + 1] } : null;
    options.push({ name, value: takes ? rest : null });
    if (takes) break;
  }
  return options;
}

/**
 * @param {Word} given
 * @param {string} name
 * @param {Word | null} input
 * @returns {Word}
 */
function contentOf(given, name, input) {
  if (!given.text.startsWith("@")) return given;
  if (given.text !== "@-") throw new Refusal(`The file ${given.text.slice(1)} cannot be read from here; paste what it holds`, given.start);
  if (!input) throw new Refusal("What the command reads is not here: a here-document, or what is piped into it", given.start);
  if (name === "data-binary" || name === "json") return input;
  // `-d` leaves line ends out.
  const kept = Array.from(input.at.keys()).filter((index) => !/[\r\n\0]/.test(input.text[index]));
  return { ...input, text: kept.map((index) => input.text[index]).join(""), at: kept.map((index) => input.at[index]) };
}

/**
 * @param {Word | null} before
 * @param {Word} next
 * @param {string} between
 * @returns {Word}
 */
function joined(before, next, between) {
  if (!before) return next;
  return { text: before.text + between + next.text, at: [...before.at, ...(between ? [next.start] : []), ...next.at], start: before.start, unknown: before.unknown ?? next.unknown };
}

/**
 * @param {string} text what is to be JSON
 * @param {(offset: number) => number} place where a character of it stands in what was pasted
 * @returns {Record<string, any>}
 */
function read(text, place) {
  try {
    const { value, places } = readJson(text);
    checkBody(value, places);
    return value;
  } catch (error) {
    if (error instanceof Refusal) throw new Refusal(error.message, place(error.at));
    throw error;
  }
}
