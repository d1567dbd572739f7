/** Numbers as people read them. */

/**
 * A count with thousands apart: 12,345.
 * @param {number} number
 */
export const count = (number) => number.toLocaleString("en-US");

/**
 * A count in few characters: 12.3K, 4.1M.
 * @param {number} number
 */
export function shortCount(number) {
  for (const [unit, name] of /** @type {[number, string][]} */ ([[1e9, "B"], [1e6, "M"], [1e3, "K"]])) {
    if (number >= unit) return `${Number((number / unit).toPrecision(3))}${name}`;
  }
  return String(number);
}

/**
 * Bytes as 0.4 MB or 21 MB.
 * @param {number} bytes
 */
export const megabytes = (bytes) => `${Number((bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0))} MB`;

/**
 * Seconds as 240 ms, 1.24 s or 2 min 5 s.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/**
 * Tokens a second, with a decimal where it matters.
 * @param {number} rate
 */
export const perSecond = (rate) => `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tok/s`;

/**
 * One word for one of a thing, another for several.
 * @param {number} number
 * @param {string} one
 * @param {string} [many]
 */
export const counted = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
