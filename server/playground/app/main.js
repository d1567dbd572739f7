/** Starts the page. */
import { h, render } from "./core/ui.js";
import { refresh } from "./api/server.js";
import { start } from "./state/library.js";
import { App } from "./view/app.js";
import { Message } from "./view/column.js";

const root = document.getElementById("app");
if (root) render(h(App, {}), root);
refresh();
start();
// By the time of the first answer it is there.
setTimeout(() => Message.ready().catch(() => {}), 500);
