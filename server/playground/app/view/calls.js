/** Calls of functions as cards, each with a place for its result. */
import { h, useState } from "../core/ui.js";
import { Glyph } from "../core/glyphs.js";
import { answerCalls, focusMessage, resultOf } from "../state/actions.js";

/**
 * @typedef {import("../talk/types.js").Message} MessageData
 * @typedef {import("../talk/talk.js").Talk} Talk
 */

/** @param {{talk: Talk, message: MessageData}} props */
export function Calls({ talk, message }) {
  const calls = message.calls ?? [];
  const [results, setResults] = useState(/** @type {Record<string, string>} */ ({}));
  const given = calls.map((call) => resultOf(talk, message.id, call.id));
  const open = message.state !== "writing" && given.some((result) => result === undefined);
  /** @param {Event} event */
  const send = (event) => {
    event.preventDefault();
    void answerCalls(talk, message.id, calls.map((call, index) => given[index] ?? results[call.id] ?? ""));
    focusMessage(talk.path.peek().at(-1));
  };
  return h("form", { class: "calls", onSubmit: send },
    calls.map((call, index) => h("section", { key: call.id || index, class: "call", "aria-label": `Call of ${call.name}` },
      h("header", {}, h(Glyph, { name: "wrench" }), h("code", {}, call.name)),
      h("pre", { tabIndex: 0, role: "region", "aria-label": `Arguments of ${call.name}` }, h("code", {}, laidOut(call.arguments))),
      given[index] === undefined && message.state !== "writing" && h("label", {},
        h("span", { class: "small muted" }, "Result"),
        h("textarea", {
          class: "input code", rows: 2, placeholder: 'What the function returns, such as {"celsius": 21}',
          value: results[call.id] ?? "",
          onInput: (/** @type {any} */ event) => setResults({ ...results, [call.id]: event.currentTarget.value }),
        }),
      ),
    )),
    open && h("button", { class: "button primary small" }, calls.length > 1 ? "Send results" : "Send result"),
  );
}

/**
 * JSON with lines of its own; what is none, or not yet, as it is.
 * @param {string} text
 */
function laidOut(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
