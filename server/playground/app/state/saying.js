/**
 * To say something and to stop what is answered: what the first view offers of `actions.js`, which is read with its
 * first use, and so are the modules below it that make requests and read answers.
 */
import { stopAll } from "../talk/runs.js";
import { columns } from "./library.js";
import { notify } from "./notices.js";

/** Read what is needed to say something; null, and a notice, where that cannot be had. */
export async function speech() {
  try {
    return await import("./actions.js");
  } catch {
    notify("A part of the page could not be loaded; reload it.");
    return null;
  }
}

/** How often answers were stopped; what is about to ask several columns looks whether it was stopped meanwhile. */
export let stops = 0;

/** End all answers that are shown. */
export function stopShown() {
  stops++;
  for (const talk of columns.peek()) stopAll(talk);
}
