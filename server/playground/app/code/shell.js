/** Commands of a shell as their words, with the place of every character: no shell, but all of its quotes. */
import { Refusal } from "../core/json.js";

/**
 * A word without its quotes.
 * @typedef {object} Word
 * @property {string} text
 * @property {number[]} at where each character of it stands
 * @property {number} start
 * @property {{name: string, at: number} | null} unknown the first thing in it that only a shell could put in
 */

/** @typedef {{words: Word[], input: Word | null, piped: boolean}} Command `piped` to the next one */

const ANSI = /** @type {Record<string, string>} */ ({ n: "\n", t: "\t", r: "\r", a: "\x07", b: "\b", e: "\x1b", E: "\x1b", f: "\f", v: "\v" });
const NUMBERS = /x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|U([0-9a-fA-F]{1,8})|([0-7]{1,3})/y;
const VARIABLE = /\$(?:\w+|\{[^}]*\}|\([^)]*\)|[@*#?$!-])|`[^`]*`/y;

/**
 * The commands of a text.
 * @param {string} text
 * @returns {Command[]}
 * @throws {Refusal} where a quote has no end
 */
export function commandsOf(text) {
  return new Shell(text).commands();
}

/** @param {number} start @returns {Word} */
const emptyWord = (start) => ({ text: "", at: [], start, unknown: null });

class Shell {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.at = 0;
    /** There a line goes on behind a backtick, and a single quote in a text is written twice. */
    this.isPowerShell = /[ \t]`\r?\n/.test(text);
    /** Here-documents whose lines are still to come. @type {{end: string, plain: boolean, tabs: boolean, into: Word}[]} */
    this.pending = [];
  }

  /** @returns {Command[]} */
  commands() {
    /** @type {Command[]} */
    const found = [];
    while (this.at < this.text.length) {
      const command = this.command();
      if (command.words.length) found.push(command);
    }
    return found;
  }

  /** One command, and what ends it. @returns {Command} */
  command() {
    /** @type {Command} */
    const command = { words: [], input: null, piped: false };
    for (;;) {
      this.skipSpace();
      const next = this.text[this.at];
      if (next === undefined) return command;
      if (next === "\n" || next === "\r") {
        this.at++;
        if (next === "\n") this.readDocuments();
        return command;
      }
      if (";&|()".includes(next)) {
        command.piped = next === "|" && this.text[this.at + 1] !== "|";
        while (this.at < this.text.length && ";&|()".includes(this.text[this.at])) this.at++;
        if (command.piped) this.skipLines();
        return command;
      }
      if (!this.redirection(command)) command.words.push(this.word());
    }
  }

  skipSpace() {
    for (;;) {
      if (/[ \t]/.test(this.text[this.at] ?? "")) this.at++;
      else if (this.continues()) this.at += this.continues();
      else if (this.text[this.at] === "#") this.at = this.lineEnd();
      else return;
    }
  }

  /** A command may go on in the line after a pipe. */
  skipLines() {
    while (/\s/.test(this.text[this.at] ?? "")) {
      if (this.text[this.at++] === "\n") this.readDocuments();
    }
  }

  /** How many characters of a line end stand here that a backslash, or in PowerShell a backtick, makes none. */
  continues() {
    const sign = this.text[this.at];
    if (sign !== "\\" && !(sign === "`" && this.isPowerShell)) return 0;
    return this.text.startsWith("\n", this.at + 1) ? 2 : this.text.startsWith("\r\n", this.at + 1) ? 3 : 0;
  }

  lineEnd() {
    const end = this.text.indexOf("\n", this.at);
    return end < 0 ? this.text.length : end;
  }

  /**
   * Something that leads a file into or out of a command; whether that stood here.
   * @param {Command} command
   */
  redirection(command) {
    const found = /(?:[0-9]*|&)(?:<<<|<<-?|>>|>\||>&|<>|[<>])/y;
    found.lastIndex = this.at;
    const operator = found.exec(this.text)?.[0];
    if (operator === undefined) return false;
    this.at += operator.length;
    this.skipSpace();
    const word = this.word();
    if (operator.endsWith("<<<")) command.input = word;
    else if (operator.includes("<<")) {
      command.input = emptyWord(this.at);
      const plain = /['"\\]/.test(this.text.slice(word.start, this.at));
      this.pending.push({ end: word.text, plain, tabs: operator.endsWith("-"), into: command.input });
    } else if (operator === "<") {
      command.input = { ...emptyWord(word.start), unknown: { name: `the file ${word.text}`, at: word.start } };
    }
    return true;
  }

  /** The here-documents that begin with this line. */
  readDocuments() {
    for (const { end, plain, tabs, into } of this.pending.splice(0)) {
      into.start = this.at;
      while (this.at < this.text.length) {
        const stop = this.lineEnd();
        if (tabs) while (this.text[this.at] === "\t") this.at++;
        const line = this.text.slice(this.at, stop).replace(/\r$/, "");
        if (line === end) {
          this.at = Math.min(stop + 1, this.text.length);
          break;
        }
        while (this.at < Math.min(stop + 1, this.text.length)) {
          if (plain) this.keep(into);
          else this.expanded(into, "$`\\");
        }
      }
    }
  }

  /** @returns {Word} */
  word() {
    const word = emptyWord(this.at);
    while (this.at < this.text.length && !/[\s;&|()<>]/.test(this.text[this.at])) {
      if (this.text[this.at] === "'") this.quoted(word);
      else if (this.text[this.at] === '"') this.doubleQuoted(word);
      else if (this.text.startsWith("$'", this.at)) this.ansiQuoted(word);
      else if (this.text.startsWith('$"', this.at)) this.at++;
      else if (this.text[this.at] === "\\") {
        const skipped = this.continues();
        if (skipped) {
          this.at += skipped;
          continue;
        }
        this.at++;
        this.keep(word);
      } else if (!this.variable(word)) this.keep(word);
    }
    return word;
  }

  /**
   * Take the character that stands here into a word.
   * @param {Word} word
   */
  keep(word) {
    if (this.at >= this.text.length) return;
    this.put(word, this.text[this.at], this.at);
    this.at++;
  }

  /**
   * @param {Word} word
   * @param {string} text
   * @param {number} at
   */
  put(word, text, at) {
    word.text += text;
    for (let index = 0; index < text.length; index++) word.at.push(at);
  }

  /** @param {Word} word */
  quoted(word) {
    const start = this.at++;
    const end = this.text.indexOf("'", this.at);
    if (end < 0) throw new Refusal("The quote that begins here has no end", start);
    for (let at = this.at; at < end; at++) word.at.push(at);
    word.text += this.text.slice(this.at, end);
    this.at = end + 1;
    if (this.isPowerShell && this.text[this.at] === "'") this.put(word, "'", this.at);
  }

  /** @param {Word} word */
  doubleQuoted(word) {
    const start = this.at++;
    while (this.text[this.at] !== '"') {
      if (this.at >= this.text.length) throw new Refusal("The quote that begins here has no end", start);
      this.expanded(word, '$`"\\');
    }
    this.at++;
  }

  /**
   * A character where the shell still reads escapes and variables.
   * @param {Word} word
   * @param {string} escaped what a backslash takes its meaning from
   */
  expanded(word, escaped) {
    const next = this.text[this.at + 1];
    if (this.continues()) this.at += this.continues();
    else if (this.text[this.at] === "\\" && next !== undefined && escaped.includes(next)) {
      this.at++;
      this.keep(word);
    } else if (!this.variable(word)) this.keep(word);
  }

  /**
   * Something whose value only a shell knows; whether that stood here.
   * @param {Word} word
   */
  variable(word) {
    VARIABLE.lastIndex = this.at;
    const name = VARIABLE.exec(this.text)?.[0];
    if (name === undefined) return false;
    word.unknown ??= { name, at: this.at };
    this.put(word, name, this.at);
    this.at += name.length;
    return true;
  }

  /**
   * What stands in $'…', where backslashes begin the escapes of C.
   * @param {Word} word
   */
  ansiQuoted(word) {
    const start = this.at;
    /** @type {number[]} */
    let bytes = [];
    const flush = () => {
      if (bytes.length) this.put(word, new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes)), this.at);
      bytes = [];
    };
    for (this.at += 2; this.text[this.at] !== "'"; ) {
      if (this.at >= this.text.length) throw new Refusal("The quote that begins here has no end", start);
      if (this.text[this.at] !== "\\") {
        flush();
        this.keep(word);
        continue;
      }
      NUMBERS.lastIndex = ++this.at;
      const found = NUMBERS.exec(this.text);
      const [number, hex, unit, point, octal] = found ?? [""];
      this.at += number.length;
      if (hex || octal) bytes.push((hex ? parseInt(hex, 16) : parseInt(octal, 8)) & 255);
      else flush();
      // A browser's "copy as cURL" writes characters beyond 16 bits as two of these.
      if (unit) this.put(word, String.fromCharCode(parseInt(unit, 16)), this.at);
      else if (point && parseInt(point, 16) <= 0x10ffff) this.put(word, String.fromCodePoint(parseInt(point, 16)), this.at);
      else if (!number) this.put(word, ANSI[this.text[this.at]] ?? this.text[this.at] ?? "", this.at++);
    }
    flush();
    this.at++;
  }
}
