/** Images of a request as files beside the program: nobody writes a photograph into one. */
import { Expression } from "./literals.js";

/** So many characters of a data URL still stand in the program. */
const LONGEST = 2048;
const HEAD = /^data:(image\/[a-z0-9.+-]+);base64,/;
/** @type {Record<string, string>} */
const SUFFIXES = { jpeg: "jpg", "svg+xml": "svg" };

/** @typedef {{name: string, type: string, url: string}} Picture */

/**
 * The request with an expression in the place of each large image, and the files that these expressions read.
 * @param {Record<string, any>} request
 * @param {(picture: Picture) => string} read the expression
 * @returns {{request: Record<string, any>, pictures: Picture[]}}
 */
export function withFiles(request, read) {
  /** @type {Map<string, Picture>} */
  const pictures = new Map();
  /** @param {any} part */
  const partOf = (part) => {
    const url = part?.image_url?.url;
    const type = typeof url === "string" && url.length > LONGEST ? typeOf(url) : null;
    if (!type) return part;
    const suffix = SUFFIXES[type.slice(6)] ?? type.slice(6);
    const picture = pictures.get(url) ?? { name: `image-${pictures.size + 1}.${suffix}`, type, url };
    pictures.set(url, picture);
    return { ...part, image_url: { ...part.image_url, url: new Expression(read(picture)) } };
  };
  const messages = request.messages?.map((/** @type {any} */ message) => (Array.isArray(message?.content) ? { ...message, content: message.content.map(partOf) } : message));
  return { request: { ...request, ...(messages ? { messages } : {}) }, pictures: [...pictures.values()] };
}

/**
 * The type of an image that a program would write as the same data URL; null for any other.
 * @param {string} url
 */
function typeOf(url) {
  const found = HEAD.exec(url);
  return found && isPlain(url.slice(found[0].length)) ? found[1] : null;
}

/** @param {string} letters */
function isPlain(letters) {
  try {
    return btoa(atob(letters)) === letters;
  } catch {
    return false;
  }
}
