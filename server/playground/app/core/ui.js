/**
 * What every view is made of: elements, hooks and signals, under one roof, so that the libraries behind them are named
 * here alone.
 */
import { h } from "../../vendor/preact.js";

export { Fragment, h, render } from "../../vendor/preact.js";
export { useCallback, useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "../../vendor/preact-hooks.js";
export { Signal, batch, computed, effect, signal, untracked, useComputed, useSignal, useSignalEffect } from "../../vendor/signals.js";

/**
 * A component that is made again only when what it is given has changed, or a signal that it reads.
 * @template {Record<string, any>} Props
 * @param {(props: Props) => any} component
 * @returns {(props: Props) => any}
 */
export function memo(component) {
  /** @this {any} @param {Props} props */
  return function Memo(props) {
    this.shouldComponentUpdate = differs;
    return h(/** @type {any} */ (component), props);
  };
}

/** @this {any} @param {Record<string, any>} next */
function differs(next) {
  return Object.keys({ ...next, ...this.props }).some((name) => next[name] !== this.props[name]);
}
