/** The whole page: bar, history, conversation, inspector, and what lies over them. */
import { h, useEffect } from "../core/ui.js";
import { lazy } from "../core/lazy.js";
import { keyWanted } from "../api/client.js";
import { columns, current } from "../state/library.js";
import { preferences } from "../state/preferences.js";
import { Composer } from "./composer.js";
import { keepFocus } from "./focus.js";
import { History } from "./history.js";
import { Inspector } from "./inspector.js";
import { listenForKeys } from "./keys.js";
import { Notices } from "./notices.js";
import { isPhone, overlay, panes } from "./panes.js";
import { Topbar } from "./topbar.js";
import { Column } from "./column.js";

const Places = lazy(async () => (await import("./places.js")).Places);
const ColumnTabs = lazy(async () => (await import("./heads.js")).ColumnTabs);
const CompareBar = lazy(async () => (await import("./heads.js")).CompareBar);
const KeyDialog = lazy(async () => (await import("./key.js")).KeyDialog);

export function App() {
  useEffect(listenForKeys, []);
  useEffect(() => keepFocus(document.body), []);
  const { inspector, history } = panes.value;
  const talks = columns.value;
  const shown = isPhone.value ? [current.value] : talks;
  const Overlay = overlay.value;
  return h("div", { class: `app ${history ? "with-history" : ""} ${inspector ? "with-inspector" : ""}`, style: { "--inspector": `${preferences.value.width}px` } },
    h("a", { class: "skip", href: "#composer", onClick: skip }, "Skip to the message box"),
    h(Topbar, {}),
    h(History, { open: history }),
    h("main", { class: `talks ${talks.length > 1 ? "several" : ""}` },
      h("h1", { class: "offscreen" }, "Playground"),
      shown.length < talks.length && h(ColumnTabs, {}),
      h("div", { id: "columns", class: "columns", style: { "--columns": shown.length } }, shown.map((talk) => h(Column, { key: talk.id, talk, index: talks.indexOf(talk), alone: talks.length === 1 }))),
      talks.length > 1 && h(CompareBar, {}),
      h(Composer, { key: talks[0].id }),
    ),
    h(Inspector, { open: inspector }),
    isPhone.value && h(Places, {}),
    h(Notices, {}),
    keyWanted.value ? h(KeyDialog, {}) : Overlay && h(Overlay.component, Overlay.props),
  );
}

/** @param {Event} event */
function skip(event) {
  event.preventDefault();
  const box = document.querySelector("#composer textarea");
  if (box instanceof HTMLElement) box.focus();
}
