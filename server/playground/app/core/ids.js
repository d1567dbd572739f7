/** Names for what the page makes. `crypto.randomUUID` does not exist over plain HTTP; `getRandomValues` does. */

/**
 * A new id: 16 letters and digits, 80 random bits.
 * @returns {string}
 */
export function newId() {
  const alphabet = "0123456789abcdefghjkmnpqrstvwxyz";
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => alphabet[byte & 31]).join("");
}
