/** The request as a program that sends it, and a program's request as a conversation. */
import { h, useMemo, useState } from "../core/ui.js";
import { shortened, useStable } from "../core/large.js";
import { apiKey } from "../api/client.js";
import { modelOf } from "../api/server.js";
import { parse, picturesOf, snippets, TARGETS } from "../code/index.js";
import { nextRequest, openAnswer, shownRequest } from "../state/inspected.js";
import { forPrograms } from "../talk/request.js";
import { focusMessage } from "../state/actions.js";
import { openRequest } from "../state/opening.js";
import { prefer, preferences } from "../state/preferences.js";
import { Coloured, CopyButton } from "../text/code.js";
import { Editor } from "./editor.js";

const KEY_VARIABLE = "HEADRACE_API_KEY";

/** @param {{talk: import("../talk/talk.js").Talk}} props */
export default function Code({ talk }) {
  const [wish, setWish] = useState(/** @type {{id: string, continues: boolean} | null} */ (null));
  const last = openAnswer(talk);
  const wished = wish?.id === last?.id ? wish?.continues : undefined;
  // What came to be continued was never asked for.
  const continues = last !== undefined && (wished ?? (last.state === "stopped" && !last.outcome));
  const request = useStable(continues ? nextRequest(talk) : shownRequest(talk));
  /** @param {boolean} continues */
  const onChange = (continues) => last && setWish({ id: last.id, continues });
  const choice = last && { continues, onChange };
  return h("div", { class: "stack" },
    typeof request === "string"
      ? h("p", { class: "note error", role: "alert" }, request)
      : request.messages.length
        ? h(Program, { request, choice, model: modelOf(talk.settings.value)?.id })
        : h("p", { class: "muted" }, "Type a message: here stands the program that sends it, in Python, JavaScript or for a shell."),
    h(Paste, {}),
  );
}

/**
 * @param {{request: Record<string, any>, model: string | undefined,
 *          choice?: {continues: boolean, onChange: (continues: boolean) => void}}} props
 */
function Program({ request, model, choice }) {
  const [stream, setStream] = useState(true);
  const target = TARGETS.find(({ id }) => id === preferences.value.language) ?? TARGETS[0];
  const { id, code, install } = target;
  const key = apiKey.value ? KEY_VARIABLE : undefined;
  const program = useMemo(() => forPrograms(request), [request]);
  const text = useMemo(() => snippets(program, { id, baseUrl: new URL("v1", document.baseURI).href, stream, model, key }), [program, id, stream, model, key]);
  const shown = useMemo(() => shortened(text), [text]);
  const files = useMemo(() => (install ? picturesOf(program) : []), [program, install]);
  return h("section", { class: "stack", "aria-label": "The request as code" },
    h("div", { class: "row" },
      h("select", { class: "input small", "aria-label": "Language", value: id, onChange: (/** @type {any} */ event) => prefer({ language: event.currentTarget.value }) },
        TARGETS.map((one) => h("option", { key: one.id, value: one.id }, one.label))),
    ),
    h("div", { class: "row" },
      h("label", { class: "row small" }, h("input", { type: "checkbox", checked: stream, onChange: (/** @type {any} */ event) => setStream(event.currentTarget.checked) }), "Stream"),
      choice && h("label", { class: "row small", title: "In place of asking for it" }, h("input", { type: "checkbox", checked: choice.continues, onChange: (/** @type {any} */ event) => choice.onChange(event.currentTarget.checked) }), "Continue the last answer"),
    ),
    h("figure", { class: "code-block program" },
      h("figcaption", {}, install ? h("code", {}, install) : h("span", {}, "For bash, zsh and their like"), h(CopyButton, { text, label: "Copy code" })),
      h("pre", { tabIndex: 0, role: "region", "aria-label": `The request as code, ${target.label}` }, h("code", {}, h(Coloured, { text: shown, language: code }))),
    ),
    files.length > 0 && h("div", { class: "row wrap" },
      h("span", { class: "small muted" }, "Reads from beside itself:"),
      files.map(({ name, url }) => h("a", { key: name, class: "button small", href: url, download: name }, name))),
    shown !== text && h("p", { class: "small muted" }, "Shown without the bytes of the images; what is copied has them."),
    key && h("p", { class: "small muted" }, "The API key is read from ", h("code", {}, key), "; it is never written here."),
  );
}

/** Where a request from elsewhere is put. */
function Paste() {
  const [text, setText] = useState("");
  const found = useMemo(() => (text.trim() ? parse(text) : null), [text]);
  const wrong = found && "error" in found ? found : null;
  const open = () => {
    if (!found || "error" in found) return;
    openRequest(found.request);
    setText("");
    focusMessage(undefined); // the button that had the focus has nothing to open any more
  };
  return h("section", { class: "stack paste" },
    h("h3", {}, "From code to here"),
    h("p", { class: "small muted" }, "Paste a curl command, or the JSON body of a request: it becomes a conversation with its settings. Nothing is sent."),
    h(Editor, { label: "A curl command or a JSON body", value: text, rows: 5, placeholder: "curl … -d '{\"messages\": …}'", fault: wrong?.error, line: wrong?.line, onInput: setText }),
    h("div", { class: "row" },
      h("button", { type: "button", class: "button small", disabled: !found || "error" in found, onClick: open }, "Open as a conversation"),
      text && h("button", { type: "button", class: "button small quiet", onClick: () => setText("") }, "Clear"),
    ),
  );
}
