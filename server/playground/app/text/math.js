/**
 * Formulas of TeX as MathML elements.
 *
 * Temml makes a tree, of which only what stands in the lists here becomes elements: no string of HTML exists, and no
 * formula can lead elsewhere or lie over anything but itself. What Temml does not understand stays the text that it is.
 */
import { h, useLayoutEffect, useMemo, useRef, useState } from "../core/ui.js";
import temml from "../../vendor/temml.js";

/** Macros may be written out so often, and what has a size may have that of so many em or so many points. */
const LIMITS = { maxExpand: 500, maxSize: /** @type {[number, number]} */ ([12, 150]) };
/** A formula that defines macros could make millions of tokens of a line; it is shown as it was written. */
const DEFINITIONS = /\\(?:[egx]?def|(?:future)?let|(?:re)?newcommand|providecommand)(?![a-z])/i;
/** More elements than this are no formula that anybody reads. */
const MOST_ELEMENTS = 5000;

const words = (/** @type {string} */ list) => new Set(list.split(" "));
const ELEMENTS = words(
  "math semantics mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd " +
  "mpadded mphantom mstyle mmultiscripts mprescripts none menclose merror",
);
const ATTRIBUTES = words(
  "accent accentunder columnalign columnspacing depth display displaystyle fence form height largeop linethickness lspace " +
  "mathbackground mathvariant maxsize minsize movablelimits rowspacing rspace scriptlevel separator stretchy symmetric voffset width",
);
const STYLES = words(
  "border borderBottom borderLeft borderRight borderTop color display fontStyle fontWeight height justifyContent left bottom " +
  "right marginLeft math-depth mathDepth padding paddingBottom paddingLeft paddingRight paddingTop position textAlign " +
  "transform whiteSpace width font-weight font-style",
);
const CLASSES = /^(?:tml-[a-z-]+|chr-[a-z-]+|upstrike|downstrike|sout|menclose|mathcal|mathscr)$/;

/** How many em a unit is, near enough to tell what goes too far. */
const EMS = new Map(Object.entries({ em: 1, ex: 0.5, px: 0.06, pt: 0.08, pc: 1, mm: 0.24, cm: 2.4, in: 6 }));
const LENGTHS = /(\d[\d.]*|\.\d+)(em|ex|px|pt|pc|mm|cm|in)\b/g;
const LONGEST = 30;

const sheet = document.createElement("link");
sheet.rel = "stylesheet";
sheet.href = new URL("../../style/math.css", import.meta.url).href;
document.head.append(sheet);

/** @param {{tex: string, display: boolean, raw: string}} props `raw` is what the model wrote, with its delimiters */
export function Formula({ tex, display, raw }) {
  const made = useMemo(() => formula(tex, display), [tex, display]);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const [isWide, setWide] = useState(false);
  useLayoutEffect(() => watch(box.current, setWide), [made]);
  if (!made) return h("code", { class: "formula" }, raw);
  // What has to be scrolled is reached by the keys as well.
  return h("span", { ref: box, class: display ? "formula block" : "formula", ...(isWide ? { tabIndex: 0, role: "group", "aria-label": "Formula" } : {}) }, made);
}

/** By element: whom to tell whether it is wider than its place. @type {Map<Element, (isWide: boolean) => void>} */
const watched = new Map();
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) watched.get(target)?.(target.scrollWidth > target.clientWidth);
});

/**
 * @param {HTMLElement | null} element
 * @param {(isWide: boolean) => void} tell
 */
function watch(element, tell) {
  if (!element) return undefined;
  watched.set(element, tell);
  observer.observe(element);
  return () => (watched.delete(element), observer.unobserve(element));
}

/**
 * @param {string} tex
 * @param {boolean} display on lines of its own
 * @returns {any} null where it is no formula
 */
function formula(tex, display) {
  if (DEFINITIONS.test(tex)) return null;
  try {
    const tree = temml.__renderToMathMLTree(tex, { displayMode: display, throwOnError: true, trust: false, strict: false, ...LIMITS });
    return element(tree, { left: MOST_ELEMENTS }, tex);
  } catch {
    return null; // not understood, or nested too deeply
  }
}

/**
 * @param {any} node of Temml's tree
 * @param {{left: number}} budget
 * @param {string} [tex] what the formula was written as, for those who hear it
 * @returns {any}
 * @throws {RangeError} where there is too much of it
 */
function element(node, budget, tex) {
  if (--budget.left < 0) throw new RangeError("too many elements");
  if (typeof node.text === "string") return node.text;
  const children = (node.children ?? []).map((/** @type {any} */ child) => element(child, budget));
  if (!ELEMENTS.has(node.type)) return children;
  const classes = (node.classes ?? []).filter((/** @type {string} */ name) => CLASSES.test(name)).join(" ");
  const style = kept(node.style ?? {}, STYLES);
  return h(node.type, {
    ...kept(node.attributes ?? {}, ATTRIBUTES),
    ...(classes ? { class: classes } : {}),
    ...(Object.keys(style).length ? { style } : {}),
    ...(tex === undefined ? {} : { alttext: tex }),
  }, children);
}

/**
 * @param {Record<string, unknown>} given
 * @param {Set<string>} names
 * @returns {Record<string, string>}
 * @throws {RangeError} where a length goes too far; Temml bounds but some of them
 */
function kept(given, names) {
  for (const value of Object.values(given)) {
    for (const [, number, unit] of String(value).matchAll(LENGTHS)) {
      if (Number(number) * (EMS.get(unit) ?? 1) > LONGEST) throw new RangeError("too long");
    }
  }
  return Object.fromEntries(Object.entries(given).filter(([name, value]) => names.has(name) && value !== "").map(([name, value]) => [name, String(value)]));
}
