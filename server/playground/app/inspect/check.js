/** The server's word on a part of a request, asked for as one types. */
import { useEffect, useState } from "../core/ui.js";
import { lineAt, readJson, Refusal } from "../core/json.js";
import { ask, pause, ServerError } from "../api/client.js";
import { lineOf } from "./place.js";

const PAUSE_MS = 500;
const AT = / at (\/[^:]*): /;

/** @typedef {{fault: string, line: number, ok: string}} Verdict */

/** @type {Verdict} */
const NONE = { fault: "", line: 0, ok: "" };

/**
 * Have the server take a part of a request, with as little computed as can be: one token.
 * @param {string} text what is typed
 * @param {string | null} model
 * @param {() => Record<string, unknown> | null} make the fields for it, null for nothing to check
 * @param {unknown[]} [others] what they depend on beside the text
 * @returns {Verdict}
 */
export function useCheck(text, model, make, others = []) {
  const [verdict, setVerdict] = useState(NONE);
  useEffect(() => {
    let fields;
    try {
      fields = make();
    } catch (error) {
      setVerdict({ ...NONE, ...syntaxFault(text, error) });
      return;
    }
    setVerdict(NONE);
    if (!fields) return;
    const abort = new AbortController();
    const json = { ...(model ? { model } : {}), messages: [{ role: "user", content: "." }], max_tokens: 1, ...fields };
    const timer = setTimeout(() => {
      ask("v1/chat/completions", { json, signal: abort.signal }).then(
        (response) => {
          const relaxed = response.headers.get("x-headrace-relaxed");
          setVerdict({ ...NONE, ok: relaxed ? `Taken, but for ${relaxed}` : "The server takes it" });
        },
        (error) => {
          if (error instanceof ServerError && error.status === 400) setVerdict({ ...NONE, fault: error.message, line: placeOf(text, error.message) });
        },
      );
    }, pause(PAUSE_MS));
    return () => (clearTimeout(timer), abort.abort());
  }, [text, model, ...others]);
  return verdict;
}

/**
 * @param {string} text
 * @param {string} message
 */
function placeOf(text, message) {
  const pointer = AT.exec(message)?.[1];
  if (!pointer) return 0;
  // The text may be the schema, or a format that holds it.
  for (const head of ["", "/json_schema/schema", "/value", "/schema"]) {
    const line = lineOf(text, head + pointer);
    if (line) return line;
  }
  return 0;
}

/**
 * @param {string} text
 * @param {unknown} error
 */
function syntaxFault(text, error) {
  try {
    readJson(text); // a browser does not always say where its own parser failed
  } catch (refusal) {
    if (refusal instanceof Refusal) return { fault: refusal.message, line: lineAt(text, refusal.at) };
  }
  return { fault: error instanceof Error ? error.message : String(error), line: 0 };
}
