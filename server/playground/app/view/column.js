/** One conversation: its messages, or what it can begin with. */
import { h, memo, useComputed, useEffect, useLayoutEffect, useRef, useState } from "../core/ui.js";
import { areWritten } from "../talk/runs.js";
import { focused } from "../state/library.js";
import { lazy } from "../core/lazy.js";
import { Welcome } from "./welcome.js";

const ColumnHead = lazy(async () => (await import("./heads.js")).ColumnHead);
export const Message = lazy(async () => (await import("./message.js")).Message);
const Shown = memo(Message);
/** So near to the end the view follows what comes. */
const PINNED_PX = 48;
/** So many messages are made in one piece of work. */
const AT_ONCE = 20;

/**
 * From which message on they are shown. A long conversation is shown from its end; the rest follows piece by piece, so
 * that the page is never busy for long.
 * @param {number} length
 */
function useBeginning(length) {
  const [count, setCount] = useState(AT_ONCE);
  const from = Math.max(0, length - count);
  useEffect(() => {
    if (!from) return;
    const timer = setTimeout(() => setCount(count + AT_ONCE));
    return () => clearTimeout(timer);
  }, [from, count]);
  return from;
}

/** @param {{talk: import("../talk/talk.js").Talk, index: number, alone: boolean}} props */
export function Column({ talk, index, alone }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const inner = useRef(/** @type {HTMLElement | null} */ (null));
  const pinned = useRef(true);
  const path = talk.path.value;
  const from = useBeginning(path.length);
  const writes = useComputed(() => areWritten([talk])).value;
  const follow = () => {
    if (pinned.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  };
  useLayoutEffect(follow, [talk.id]);
  // A new message is followed when its place is known, by the observer below: asking here would lay out all columns.
  useLayoutEffect(() => {
    pinned.current = true;
  }, [path.length]);
  useEffect(() => {
    if (!inner.current) return;
    const observer = new ResizeObserver(follow);
    observer.observe(inner.current);
    if (box.current) observer.observe(box.current); // the room for it changes as well, as by a bar below it
    return () => observer.disconnect();
  }, [talk.id, path.length === 0]);
  const lastTop = useRef(0);
  const scrolled = () => {
    const { current } = box;
    if (!current) return;
    const { scrollTop: top } = current;
    // What has come since the view was moved makes the distance larger; only a person moves it up.
    if (current.scrollHeight - top - current.clientHeight < PINNED_PX) pinned.current = true;
    else if (top < lastTop.current) pinned.current = false;
    lastTop.current = top;
  };
  return h("section", { class: "column", "aria-label": alone ? "Conversation" : `Column ${index + 1}`, onFocusCapture: () => (focused.value = index) },
    !alone && h(ColumnHead, { talk, index }),
    h("div", { class: "transcript", ref: box, onScroll: scrolled, role: "log", "aria-live": "off", "aria-busy": writes, tabIndex: 0, "aria-label": "Messages" },
      path.length
        ? h("div", { class: "messages", ref: inner }, path.slice(from).map((id, at) => h(Shown, { key: id, talk, id, last: from + at === path.length - 1 })))
        : h(Welcome, { talk }),
    ),
  );
}
