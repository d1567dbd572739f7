/** Parts of the page that are read when they are first needed. */
import { h, useEffect, useState } from "./ui.js";

/**
 * A component in the place of one whose module is not there yet; until it is, there is nothing.
 * @param {() => Promise<any>} load the component
 */
export function lazy(load) {
  /** @type {any} */
  let component = null;
  const ready = async () => (component ??= await load());
  /** @param {any} props */
  function Lazy(props) {
    const [state, setState] = useState(component ? "there" : "waiting");
    useEffect(() => {
      // The module may have come between the rendering and this.
      if (state === "waiting") ready().then(() => setState("there"), () => setState("failed"));
    }, []);
    if (state === "failed") return h("p", { class: "note error", role: "alert" }, "A part of the page could not be loaded; reload it.");
    return component && h(component, props);
  }
  /** Read it before it is needed. */
  Lazy.ready = ready;
  return Lazy;
}
