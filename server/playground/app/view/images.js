/** Images from files into what is being written: as data URLs that the server takes, and no more than it takes. */
import { megabytes } from "../core/format.js";
import { limits } from "../api/server.js";
import { notify } from "../state/notices.js";

/** @typedef {import("../talk/talk.js").Talk} Talk */

const TAKEN = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];
/** Of a request beside its images. */
const ROOM_FOR_TEXT = 100_000;

/**
 * Add files to the draft of a conversation. What is no image, or more than the server takes, is named and left out,
 * before anything is read of it.
 * @param {Talk} talk
 * @param {File[]} files
 */
export async function addImages(talk, files) {
  for (const file of files) {
    const fault = file.type.startsWith("image/") ? faultOf(talk, file) : `${file.name} is no image`;
    if (fault) {
      notify(fault);
      continue;
    }
    const url = await readImage(file).catch(() => "");
    // A kind that the server does not know comes as a PNG, which may be far larger than the file.
    const excess = TAKEN.includes(file.type) ? "" : faultOf(talk, { name: file.name, size: (url.length * 3) / 4 });
    const { draft } = talk.record.peek();
    if (excess) notify(excess);
    else if (url) talk.changeRecord({ draft: { ...draft, images: [...draft.images, url] } });
    else notify("A file could not be read as an image");
  }
}

/**
 * Why the server would not take a file, empty if it may.
 * @param {Talk} talk
 * @param {{name: string, size: number}} file
 */
function faultOf(talk, { name, size }) {
  const { request_bytes: most = Infinity, images = Infinity, image_bytes: largest = Infinity } = limits.peek();
  if (size > largest) return `${name} has ${megabytes(size)}; this server takes images of at most ${megabytes(largest)}`;
  const urls = [...talk.shown().flatMap((message) => message.images ?? []), ...talk.record.peek().draft.images];
  if (urls.length >= images) return `${name} is one image too many: this server takes at most ${images} in a conversation`;
  const whole = urls.reduce((sum, url) => sum + url.length, ROOM_FOR_TEXT) + encoded(size);
  if (whole <= most) return "";
  return `With ${name} the request would have ${megabytes(whole)}; this server takes at most ${megabytes(most)}`;
}

/**
 * Characters of so many bytes in a data URL.
 * @param {number} size
 */
const encoded = (size) => Math.ceil(size / 3) * 4;

/**
 * @param {File} file
 * @returns {Promise<string>} a data URL; of kinds that the server does not know it is a PNG
 */
async function readImage(file) {
  if (TAKEN.includes(file.type)) return dataUrl(file);
  const picture = await createImageBitmap(file);
  const canvas = Object.assign(document.createElement("canvas"), { width: picture.width, height: picture.height });
  canvas.getContext("2d")?.drawImage(picture, 0, 0);
  return canvas.toDataURL("image/png");
}

/**
 * @param {Blob} blob
 * @returns {Promise<string>}
 */
const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
