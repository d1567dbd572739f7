/** What crossed the wire for an answer: the request, the headers, the events with their times. */
import { h, useMemo } from "../core/ui.js";
import { counted } from "../core/format.js";
import { shortened, useStable } from "../core/large.js";
import { traces } from "../talk/run.js";
import { runs } from "../talk/runs.js";
import { inspectedOf, nextRequest } from "../state/inspected.js";
import { CopyButton } from "../text/code.js";

/** So many events are shown: the first and the last of them. */
const MOST_SHOWN = 300;

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export default function Raw({ talk }) {
  const message = inspectedOf(talk);
  runs.value;
  const trace = message && traces.get(message.id);
  const request = useStable(trace?.request ?? nextRequest(talk));
  const text = useMemo(() => (typeof request === "string" ? request : JSON.stringify(request, null, 2)), [request]);
  return h("div", { class: "stack" },
    h(Part, { title: trace ? "Request" : "The next request", text }),
    trace && trace.headers.length > 0 && h(Part, { title: "Headers of the answer", text: trace.headers.map((/** @type {[string, string]} */ [name, value]) => `${name}: ${value}`).join("\n") }),
    trace && h(Events, { events: trace.events }),
    message && !trace && h("p", { class: "small muted" }, "What crossed the wire for the last answer is known only until the page is reloaded."),
  );
}

/** @param {{title: string, text: string}} props */
function Part({ title, text }) {
  const shown = useMemo(() => shortened(text), [text]);
  return h("section", {},
    h("div", { class: "row" }, h("h3", { class: "small" }, title), h("span", { class: "spring" }), h(CopyButton, { text, label: `Copy ${title.toLowerCase()}` })),
    h("pre", { class: "raw", tabIndex: 0, role: "region", "aria-label": title }, shown),
  );
}

/** @param {{events: {at: number, text: string}[]}} props */
function Events({ events }) {
  const left = events.length - MOST_SHOWN;
  const half = MOST_SHOWN / 2;
  const shown = events.map((event, index) => ({ ...event, index, delta: event.at - (events[index - 1]?.at ?? 0) }));
  const parts = left > 0 ? [shown.slice(0, half), shown.slice(-half)] : [shown];
  return h("section", {},
    h("h3", { class: "small" }, counted(events.length, "event")),
    parts.map((part, index) => h("div", { key: index },
      index === 1 && h("p", { class: "small muted" }, `… ${counted(left, "event")} …`),
      h("table", { class: "events" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "At"), h("th", { scope: "col" }, "Δ ms"), h("th", { scope: "col" }, "Event"))),
        h("tbody", {}, part.map((event) => h("tr", { key: event.index }, h("td", {}, Math.round(event.at)), h("td", {}, event.delta.toFixed(1)), h("td", {}, h("code", {}, event.text))))),
      ),
    )),
  );
}
