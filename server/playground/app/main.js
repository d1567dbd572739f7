/** Starts the page. */
import { h, render } from "./core/ui.js";
import { refresh } from "./api/server.js";
import { Models } from "./view/models.js";

const root = document.getElementById("app");
if (root) render(h(Models, {}), root);
refresh();
