/** The models of this server, with their states. */
import { h } from "../core/ui.js";
import { counted } from "../core/format.js";
import { apiKey, keyWanted, setApiKey } from "../api/client.js";
import { link, models, refresh } from "../api/server.js";

/** The page's first view: what this server has. */
export function Models() {
  if (keyWanted.value) return h(KeyForm, {});
  return h("main", { class: "models" },
    h("h1", {}, "Headrace"),
    link.value === "unreachable" && h("p", { role: "alert", class: "note error" }, "The server cannot be reached; trying again."),
    h("ul", {}, models.value.map((model) => h("li", { key: model.id },
      h("span", { class: `dot ${model.state}` }),
      h("strong", {}, model.id),
      h("span", { class: "muted" }, [model.state, model.context_length && `${counted(model.context_length, "token")} of context`].filter(Boolean).join(" · ")),
    ))),
  );
}

/** Asks for the key that the server wants. */
function KeyForm() {
  /** @param {SubmitEvent} event */
  const submit = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    setApiKey(String(new FormData(form).get("key") ?? ""));
    refresh();
  };
  return h("main", { class: "models" },
    h("h1", {}, "Headrace"),
    h("form", { onSubmit: submit },
      h("label", {}, "This server asks for an API key", h("input", { class: "input", name: "key", type: "password", autocomplete: "off", defaultValue: apiKey.value, required: true })),
      h("button", { class: "button primary" }, "Go on"),
    ),
  );
}
