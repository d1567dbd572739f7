/** Work in pieces, so that the page answers whoever uses it while much is done. */

/** So many ms of a frame are for what has come; what is left waits for the next, which is drawn after this one. */
const FRAME_SHARE_MS = 8;
/** So many frames something may wait for its turn. */
const MOST_WAITS = 6;

/** Let what waits be done first: keys, clicks, a frame. */
export const breath = () => new Promise((resolve) => setTimeout(resolve));

/**
 * Do something in the next frame that has time for it.
 * @param {() => void} act
 * @returns {() => void} lets it be
 */
export function inFrame(act) {
  let waits = 0;
  /** @param {number} began */
  const look = (began) => {
    if (performance.now() - began < FRAME_SHARE_MS || ++waits > MOST_WAITS) act();
    else frame = requestAnimationFrame(look);
  };
  let frame = requestAnimationFrame(look);
  return () => cancelAnimationFrame(frame);
}
