/** Asks for the API key that the server wants. */
import { h } from "../core/ui.js";
import { apiKey, keyWanted, setApiKey } from "../api/client.js";
import { refresh } from "../api/server.js";
import { Dialog } from "./dialog.js";

export function KeyDialog() {
  const refused = apiKey.value !== "";
  /** @param {SubmitEvent} event */
  const submit = (event) => {
    event.preventDefault();
    setApiKey(String(new FormData(/** @type {HTMLFormElement} */ (event.currentTarget)).get("key") ?? "").trim());
    refresh();
  };
  return h(Dialog, { title: "This server asks for an API key", onClose: () => (keyWanted.value = false) },
    h("form", { class: "stack", onSubmit: submit },
      refused && h("p", { class: "note error", role: "alert" }, "The server did not take this key."),
      h("label", { class: "stack" }, h("span", { class: "small" }, "API key"),
        h("input", { class: "input", name: "key", type: "password", autocomplete: "off", spellcheck: false, required: true, autoFocus: true, defaultValue: apiKey.value, "aria-invalid": refused })),
      h("p", { class: "small muted" }, "It is kept until this tab is closed, and sent to this server alone."),
      h("div", { class: "row end" }, h("button", { class: "button primary" }, "Use this key")),
    ),
  );
}
