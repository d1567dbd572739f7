/** Values that may be large, as those with images are: not made again where nothing has changed, and shown in part. */
import { count } from "./format.js";
import { useRef } from "./ui.js";

const BEFORE_BYTES = ";base64,";
/** So many letters of an image still are shown. */
const LONGEST = 1000;
const SHOWN_OF_LONGER = 40;

/**
 * A value as it was before, where it says the same, so that nothing that depends on it is made again.
 * @template T
 * @param {T} value plain data
 * @returns {T}
 */
export function useStable(value) {
  const kept = useRef(value);
  if (!same(kept.current, value)) kept.current = value;
  return kept.current;
}

/**
 * @param {any} a
 * @param {any} b
 * @returns {boolean}
 */
function same(a, b) {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && Array.isArray(a) === Array.isArray(b) && names.every((name) => name in b && same(a[name], b[name]));
}

/**
 * A text with the bytes of images left out, which nobody reads and which a browser draws for seconds.
 * @param {string} text JSON or a program, where they end with a quote; regular expressions cannot cross so many letters
 */
export function shortened(text) {
  const parts = [];
  let from = 0;
  for (let at = text.indexOf(BEFORE_BYTES); at >= 0; at = text.indexOf(BEFORE_BYTES, from)) {
    const begin = at + BEFORE_BYTES.length;
    const ends = [text.indexOf('"', begin), text.indexOf("'", begin)].filter((end) => end >= 0);
    const end = ends.length ? Math.min(...ends) : text.length;
    const isLong = end - begin > LONGEST;
    parts.push(text.slice(from, isLong ? begin + SHOWN_OF_LONGER : end), isLong ? `… ${count(end - begin)} letters …` : "");
    from = end;
  }
  return parts.join("") + text.slice(from);
}
