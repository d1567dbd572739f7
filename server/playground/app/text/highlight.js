/**
 * Code as pieces of one kind each, to be coloured. No grammar: comments, strings, numbers, keywords, and names that are
 * called, which is what helps the eye. Every character comes out as it went in, whatever the language is.
 *
 * A piece begins where nothing is open, so a text that grows is read again from the start of its last piece alone.
 */

/** @typedef {"comment" | "string" | "number" | "keyword" | "name" | "plain"} Kind */
/** @typedef {{kind: Kind, text: string}} Token */

const words = (/** @type {string} */ list) => new Set(list.split(" "));

const SLASH = String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
const HASH = String.raw`(?<![^\s;(|&])#[^\n]*`;
const DASHES = String.raw`--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
const QUOTES = String.raw`"(?:[^"\\\n]|\\[\s\S])*"?|'(?:[^'\\\n]|\\[\s\S])*'?`;
const TRIPLE = String.raw`[rbfuRBFU]{0,2}(?:"""(?:[^\\]|\\[\s\S])*?(?:"""|$)|'''(?:[^\\]|\\[\s\S])*?(?:'''|$)|"(?:[^"\\\n]|\\[\s\S])*"?|'(?:[^'\\\n]|\\[\s\S])*'?)`;
const TEMPLATE = "`(?:[^`\\\\]|\\\\[\\s\\S])*(?:`|$)";
const SHELL = String.raw`\$'(?:[^'\\]|\\[\s\S])*(?:'|$)|"(?:[^"\\]|\\[\s\S])*(?:"|$)|'[^']*(?:'|$)`;
const C_WORDS = "auto bool break case char class const constexpr continue default delete do double else enum explicit extern false final float for friend goto if inline int long namespace new noexcept nullptr NULL operator override private protected public register return short signed sizeof static static_cast struct switch template this throw true try catch typedef typename union unsigned using virtual void volatile while size_t include define ifdef ifndef endif";
const JS_WORDS = "abstract any as async await boolean break case catch class const continue debugger declare default delete do else enum export extends false finally for from function get if implements import in infer instanceof interface keyof let namespace never new null number of private protected public readonly return satisfies set static string super switch this throw true try type typeof undefined unknown var void while with yield";

/** @typedef {{comment: string, string: string, keywords: Set<string>, anyCase?: boolean, markup?: boolean, keys?: boolean}} Language */

/** @type {Record<string, Language>} */
const LANGUAGES = {
  python: { comment: "#[^\\n]*", string: TRIPLE, keywords: words("and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return self True try while with yield") },
  javascript: { comment: SLASH, string: `${QUOTES}|${TEMPLATE}`, keywords: words(JS_WORDS) },
  json: { comment: SLASH, string: QUOTES, keywords: words("true false null"), keys: true },
  bash: { comment: HASH, string: SHELL, keywords: words("if then else elif fi for while until do done case esac in function select time return exit export local readonly declare set unset source echo cd curl sudo printf read shift trap eval exec test true false") },
  c: { comment: SLASH, string: QUOTES, keywords: words(C_WORDS) },
  java: { comment: SLASH, string: QUOTES, keywords: words("abstract as assert boolean break byte case catch char class const continue data default do double else enum extends false final finally float for fun if implements import in instanceof int interface internal is let long namespace new null object open out override package private protected public record return sealed short static string super suspend switch synchronized this throw throws transient true try using val var virtual void volatile when where while yield async await func guard struct protocol extension self nil") },
  go: { comment: SLASH, string: `${QUOTES}|${TEMPLATE}`, keywords: words("any bool break byte case chan const continue default defer else error fallthrough false float32 float64 for func go goto if import int int32 int64 interface map nil package range return rune select string struct switch true type uint var make len append") },
  rust: { comment: SLASH, string: String.raw`r?"(?:[^"\\]|\\[\s\S])*(?:"|$)|'(?:[^'\\\n]|\\[^\n]{1,8})'`, keywords: words("as async await bool break char const continue crate dyn else enum extern f32 f64 false fn for i32 i64 if impl in let loop match mod move mut pub ref return Self self static str struct super trait true type u8 u32 u64 unsafe use usize where while Some None Ok Err Vec String Box") },
  ruby: { comment: HASH, string: QUOTES, keywords: words("alias and begin break case class def defined do else elsif end ensure false for if in module next nil not or puts raise redo require rescue retry return self super then true undef unless until when while yield local function repeat") },
  sql: { comment: DASHES, string: QUOTES, anyCase: true, keywords: words("add all alter and as asc begin between by case check column commit constraint create cross database default delete desc distinct drop else end exists foreign from full group having if in index inner insert integer into is join key left like limit not null on or order outer primary references returning right rollback select set table text then union unique update values varchar view when where with") },
  css: { comment: String.raw`\/\*[\s\S]*?(?:\*\/|$)`, string: QUOTES, keywords: words("important"), keys: true },
  yaml: { comment: HASH, string: QUOTES, keywords: words("true false null yes no on off"), keys: true },
  html: { comment: String.raw`<!--[\s\S]*?(?:-->|$)`, string: String.raw`(?<==)(?:"[^"]*"?|'[^']*'?)`, keywords: new Set(), markup: true },
};

/** @type {Record<string, string>} */
const OTHER_NAMES = {
  py: "python", python3: "python", js: "javascript", jsx: "javascript", mjs: "javascript", node: "javascript", ts: "javascript", tsx: "javascript", typescript: "javascript",
  json5: "json", jsonc: "json", jsonl: "json", sh: "bash", shell: "bash", zsh: "bash", console: "bash", dockerfile: "bash", makefile: "bash",
  "c++": "c", cpp: "c", h: "c", hpp: "c", cuda: "c", objc: "c", cs: "java", csharp: "java", "c#": "java", kotlin: "java", kt: "java", scala: "java", swift: "java", php: "java", dart: "java",
  golang: "go", rs: "rust", rb: "ruby", lua: "ruby", elixir: "ruby", postgresql: "sql", mysql: "sql", sqlite: "sql", scss: "css", less: "css", yml: "yaml", toml: "yaml", ini: "yaml",
  xml: "html", svg: "html", vue: "html", svelte: "html",
};

/** @type {Map<Language, RegExp>} */
const expressions = new Map();

/** @param {Language} language */
function expressionOf(language) {
  const known = expressions.get(language);
  if (known) return known;
  const { comment, string, markup } = language;
  const tag = markup ? String.raw`|(?<tag><\/?[A-Za-z][\w:.-]*|\/?>)|(?<attribute>[A-Za-z_:@][\w:.-]*(?==))` : "";
  const number = String.raw`(?<![\w.])(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\w{0,3}`;
  const made = new RegExp(`(?<comment>${comment})|(?<string>${string})${tag}|(?<number>${number})|(?<word>[A-Za-z_$][\\w$]*)`, "g");
  expressions.set(language, made);
  return made;
}

/**
 * @param {string} name as it stands behind the fence of a block
 * @returns {Language | undefined}
 */
export function languageOf(name) {
  const known = name.toLowerCase();
  const main = Object.hasOwn(OTHER_NAMES, known) ? OTHER_NAMES[known] : known;
  return Object.hasOwn(LANGUAGES, main) ? LANGUAGES[main] : undefined;
}

/**
 * @param {string} text
 * @param {Language} language
 * @param {number} [from] where something begins
 * @returns {Generator<Token>}
 */
export function* tokensOf(text, language, from = 0) {
  const expression = new RegExp(expressionOf(language)); // one of its own, since it remembers where it is
  expression.lastIndex = from;
  let at = from;
  for (let found = expression.exec(text); found && found[0]; found = expression.exec(text)) {
    if (found.index > at) yield { kind: "plain", text: text.slice(at, found.index) };
    at = found.index + found[0].length;
    yield { kind: kindOf(found, text, at, language), text: found[0] };
  }
  if (at < text.length) yield { kind: "plain", text: text.slice(at) };
}

/**
 * @param {RegExpExecArray} found
 * @param {string} text
 * @param {number} end
 * @param {Language} language
 * @returns {Kind}
 */
function kindOf({ groups = {} }, text, end, { keywords, anyCase, keys }) {
  if (groups.comment !== undefined) return "comment";
  if (groups.string !== undefined) return keys && isKey(text, end) ? "name" : "string";
  if (groups.number !== undefined) return "number";
  if (groups.tag !== undefined) return "keyword";
  if (groups.attribute !== undefined) return "name";
  const { word } = groups;
  if (keywords.has(anyCase ? word.toLowerCase() : word)) return "keyword";
  return text[end] === "(" || (keys && isKey(text, end)) ? "name" : "plain";
}

/**
 * @param {string} text
 * @param {number} end
 */
const isKey = (text, end) => /^\s*[:=](?!:)/.test(text.slice(end, end + 4));
