/**
 * The focus of those who use keys is never lost. What had it may be gone after a change, or take none any more, as a button
 * that has nothing left to do; a browser then begins at the top of the page again, thirty keys away.
 */

const IN_ORDER = '[tabindex="0"]';
const TAKES_FOCUS = ["button", "input", "select", "textarea"].map((name) => `${name}:not(:disabled, [hidden], [tabindex="-1"])`).join();

/**
 * Watch the page; gives back what ends it.
 * @param {HTMLElement} root
 */
export function keepFocus(root) {
  /** From what has the focus up to the root. @type {Element[]} */
  let way = [];
  let byKeys = false;
  const note = () => {
    way = [];
    for (let at = document.activeElement; at && at !== root; at = at.parentElement) way.push(at);
  };
  const look = () => {
    const [had] = way;
    const { activeElement: has } = document;
    const isThere = had?.isConnected && !had.matches(":disabled");
    if (!had || isThere || !byKeys || (has !== had && has !== document.body)) return;
    const next = nextTo(way);
    if (next instanceof HTMLElement) next.focus();
  };
  const observer = new MutationObserver(look);
  observer.observe(root, { childList: true, subtree: true, attributeFilter: ["disabled"] });
  const listeners = { focusin: note, keydown: () => (byKeys = true), pointerdown: () => (byKeys = false) };
  for (const [name, listener] of Object.entries(listeners)) document.addEventListener(name, listener, true);
  return () => {
    observer.disconnect();
    for (const [name, listener] of Object.entries(listeners)) document.removeEventListener(name, listener, true);
  };
}

/**
 * What stands nearest to something that is gone. Where that is nothing but the whole page, or the place where messages are
 * written, it is the box for them.
 * @param {Element[]} way
 */
function nextTo(way) {
  for (const place of way.slice(1)) {
    if (place.classList.contains("app") || place.id === "composer") break;
    if (!place.isConnected) continue;
    const found = place.matches(IN_ORDER) ? place : place.querySelector(`${TAKES_FOCUS}, ${IN_ORDER}`);
    if (found) return found;
  }
  return document.querySelector("#composer textarea");
}
