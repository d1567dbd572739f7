/** How the server stands, in a few figures; opens the panel with all of them. */
import { h, useEffect } from "../core/ui.js";
import { perSecond } from "../core/format.js";
import { lazy } from "../core/lazy.js";
import { Glyph } from "../core/glyphs.js";
import { now, watchServer } from "../api/metrics.js";
import { link } from "../api/server.js";
import { openOverlay } from "./panes.js";

const ServerDialog = lazy(async () => (await import("./server.js")).ServerDialog);

export function ServerChip() {
  useEffect(watchServer, []);
  // Figures of before are none of a server that cannot be reached.
  const sample = link.value === "unreachable" ? null : now.value;
  return h("button", { type: "button", class: "button quiet server-chip", "aria-haspopup": "dialog", title: "The server", onClick: () => openOverlay(ServerDialog) },
    h(Glyph, { name: "chart" }),
    h("span", { class: "small words" }, sample
      ? [`${sample.running} running`, sample.waiting > 0 && `${sample.waiting} waiting`, `KV ${Math.round(sample.kv * 100)} %`, sample.rate > 0 && perSecond(sample.rate)].filter(Boolean).join(" · ")
      : "Server"),
  );
}
