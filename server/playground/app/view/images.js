/** Images from files, as data URLs that the server takes. */

const TAKEN = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];

/**
 * @param {FileList | File[] | undefined | null} files
 * @returns {File[]}
 */
export const imageFiles = (files) => [...(files ?? [])].filter((file) => file.type.startsWith("image/"));

/**
 * @param {File} file
 * @returns {Promise<string>} a data URL; of kinds that the server does not know it is a PNG
 */
export async function readImage(file) {
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
