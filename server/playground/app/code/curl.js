/** Requests as curl commands for a shell. */
import { literal, PLAIN_JSON } from "./literals.js";

/**
 * The body goes through a here-document, in which no character means anything to the shell. No line of the body can be
 * its end: strings of JSON hold no line ends, and no line of an object is made of letters.
 * @param {Record<string, any>} request
 * @param {import("./index.js").Target} target
 * @returns {string}
 */
export function curl(request, target) {
  return [
    `curl ${request.stream ? "-N " : ""}${word(`${target.baseUrl}/chat/completions`)} \\`,
    "  -H 'Content-Type: application/json' \\",
    ...(target.key ? [`  -H "Authorization: Bearer $${target.key}" \\`] : []),
    "  --data-binary @- <<'JSON'",
    literal(request, PLAIN_JSON, "", Infinity),
    "JSON",
    "",
  ].join("\n");
}

/**
 * A word of a shell command.
 * @param {string} text
 */
const word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
