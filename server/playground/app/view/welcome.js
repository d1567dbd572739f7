/** What is seen before anything was said: what this is, and three examples that run. */
import { h } from "../core/ui.js";
import { columns } from "../state/library.js";
import { speech } from "../state/saying.js";
import { link, modelOf, nameOf, stateWords, takesRequests } from "../api/server.js";

/** Each is the body of a request. */
const EXAMPLES = [
  {
    title: "Ask a question",
    text: "What makes the sky blue? Answer in two sentences.",
    body: { messages: [{ role: "user", content: "What makes the sky blue? Answer in two sentences." }] },
  },
  {
    title: "Get JSON that fits a schema",
    text: "Describe a city, with its country and population.",
    body: {
      messages: [{ role: "user", content: "Describe Lisbon as JSON." }],
      response_format: {
        type: "json_schema",
        json_schema: {
          name: "city",
          strict: true,
          schema: {
            type: "object",
            properties: { city: { type: "string" }, country: { type: "string" }, population: { type: "integer" } },
            required: ["city", "country", "population"],
          },
        },
      },
      max_tokens: 120,
    },
  },
  {
    title: "See how sure it is",
    text: "Each word shaded by its probability.",
    body: { messages: [{ role: "user", content: "Name three rivers of Europe." }], logprobs: true, top_logprobs: 5, temperature: 0, max_tokens: 60 },
  },
];

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export function Welcome({ talk }) {
  const model = modelOf(talk.settings.value);
  const ready = takesRequests(model);
  /** @param {typeof EXAMPLES[number]["body"]} body */
  const run = async (body) => {
    const [spoken, { fromRequest }] = await Promise.all([speech(), import("../talk/given.js")]);
    if (!spoken) return;
    const { settings, messages } = fromRequest(body);
    for (const column of columns.peek()) column.changeSettings({ params: settings.params, format: settings.format, tools: settings.tools });
    void spoken.send(columns.peek(), { text: messages[0].content ?? "", images: [] });
  };
  return h("div", { class: "welcome" },
    h("h2", {}, model ? nameOf(model.id) : link.value === "unreachable" ? "The server cannot be reached" : "Connecting"),
    model && h("p", { class: "muted" }, ready ? `${model.state === "unloaded" ? "The first message loads it." : "It runs on your own server."} Type a message, or begin with one of these.` : link.value === "unreachable" ? "It cannot be reached now." : `${stateWords(model)} …`),
    model && !ready && model.progress?.fraction != null && h("progress", { value: model.progress.fraction, max: 1, "aria-label": "Loading" }),
    h("div", { class: "examples" }, EXAMPLES.map(({ title, text, body }) => h("button", { key: title, type: "button", class: "example", disabled: !ready, onClick: () => run(body) },
      h("strong", {}, title),
      h("span", { class: "muted small" }, text),
    ))),
    h("p", { class: "muted small wide-only" }, h("kbd", {}, "Ctrl K"), " shows all that can be done."),
  );
}
