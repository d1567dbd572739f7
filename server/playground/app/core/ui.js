/**
 * What every view is made of: elements, hooks and signals, under one roof, so that the libraries behind them are named
 * here alone.
 */
export { Fragment, h, render } from "../../vendor/preact.js";
export { useCallback, useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "../../vendor/preact-hooks.js";
export { Signal, batch, computed, effect, signal, untracked, useComputed, useSignal, useSignalEffect } from "../../vendor/signals.js";
