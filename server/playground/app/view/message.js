/** One message of a conversation: what it says, and what can be done with it. */
import { h, useEffect, useRef, useState } from "../core/ui.js";
import { count, counted, duration, perSecond } from "../core/format.js";
import { Glyph, IconButton } from "../core/glyphs.js";
import { CopyButton } from "../text/code.js";
import { runs } from "../talk/runs.js";
import { continueAnswer, deleteMessage, editMessage, focusMessage, retry } from "../state/actions.js";
import { lookInto } from "../state/inspected.js";
import { inspect } from "./panes.js";
import { Body } from "./body.js";
import { Calls } from "./calls.js";

/**
 * @typedef {import("../talk/types.js").Message} MessageData
 * @typedef {import("../talk/talk.js").Talk} Talk
 */

const NAMES = { system: "System message", user: "Your message", assistant: "Answer", tool: "Result of a call" };
const ROLES = { system: "System", user: "You", assistant: "Assistant", tool: "Result" };
const [BEFORE, AFTER, UP, DOWN] = ["Version before", "Version after", "Move up", "Move down"];
const SHOWN_MODEL = /[^/]*$/;

/** @param {{talk: Talk, id: string, last: boolean}} props */
export function Message({ talk, id, last }) {
  const [editing, setEditing] = useState(false);
  const message = talk.messages.get(id)?.value;
  if (!message) return null;
  const actions = !editing && message.state !== "writing" && h(Actions, { talk, message, last, onEdit: () => setEditing(true) });
  return h("article", { class: `message ${message.role}`, "data-id": id, tabIndex: -1, "aria-label": NAMES[message.role] },
    h("header", {},
      h("h2", {}, ROLES[message.role]),
      message.role === "assistant" && message.outcome?.model && h("span", { class: "muted small" }, message.outcome.model.match(SHOWN_MODEL)?.[0]),
      message.role === "tool" && message.name && h("code", {}, message.name),
      h(Branches, { talk, id }),
      message.role !== "assistant" && actions,
    ),
    editing
      ? h(Editor, { talk, message, onDone: () => (setEditing(false), focusMessage(id)) })
      : h(Content, { talk, message }),
    !editing && h(State, { talk, message }),
    message.role === "assistant" && actions,
  );
}

/** @param {{talk: Talk, message: MessageData}} props */
function Content({ talk, message }) {
  const writes = message.state === "writing";
  return h("div", { class: "content", "aria-busy": writes },
    message.reasoning && h(Reasoning, { text: message.reasoning, writes: writes && !message.content }),
    message.images?.map((url, index) => h(Picture, { key: index, url, alt: `Image ${index + 1} of this message` })),
    message.content && h(Body, { message }),
    message.calls && h(Calls, { talk, message }),
  );
}

/**
 * A picture that the message holds. One that stands elsewhere is named: the server may fetch it, and to show it here would
 * tell its host who looks.
 * @param {{url: string, alt: string}} props
 */
function Picture({ url, alt }) {
  return url.startsWith("data:image/") ? h("img", { class: "picture", src: url, alt }) : h("p", { class: "small muted plain" }, `${alt}: ${url}`);
}

/**
 * What the model thought before it answered: folded, with its length.
 * @param {{text: string, writes: boolean}} props
 */
function Reasoning({ text, writes }) {
  const words = text.trim().split(/\s+/).length;
  return h("details", { class: "reasoning" },
    h("summary", {}, h(Glyph, { name: "thought" }), writes ? "Thinking" : "Thought", h("span", { class: "muted" }, counted(words, "word"))),
    h("div", { class: "thoughts" }, text),
  );
}

/**
 * How an answer stands or came about, in words and figures.
 * @param {{talk: Talk, message: MessageData}} props
 */
function State({ message }) {
  const { state, outcome } = message;
  if (state === "writing") return h(Progress, { id: message.id });
  if (!outcome) return null;
  return h("div", { class: "outcome" },
    state === "failed" && outcome.error && h("div", { class: "note error", role: "alert" },
      h("strong", {}, outcome.error.message),
      h("span", { class: "small muted" }, [outcome.error.param && `Field: ${outcome.error.param}`, outcome.error.requestId && `Request: ${outcome.error.requestId}`].filter(Boolean).join(" · ")),
    ),
    state === "stopped" && h("span", { class: "chip" }, "Stopped"),
    outcome.finish === "length" && h("span", { class: "chip" }, "Cut off at its length limit"),
    h(Figures, { outcome }),
    outcome.unused && h("span", { class: "chip", title: outcome.unused }, "Not used: ", outcome.unused),
    outcome.relaxed && h("span", { class: "chip", title: outcome.relaxed }, "Not held to: ", outcome.relaxed),
  );
}

/**
 * What an answer took.
 * @param {{outcome: import("../talk/types.js").Outcome}} props
 */
export function Figures({ outcome }) {
  const { firstMs, ms, tokens, before, finish } = outcome;
  if (firstMs === undefined || ms === undefined) return null;
  const rate = tokens && tokens > 1 && ms > firstMs ? (tokens - 1) / ((ms - firstMs) / 1000) : 0;
  return h("dl", { class: "figures" },
    h("div", {}, h("dt", {}, "First token"), h("dd", {}, duration(firstMs / 1000))),
    rate > 0 && h("div", {}, h("dt", {}, "Speed"), h("dd", {}, perSecond(rate))),
    tokens !== undefined && h("div", {}, h("dt", {}, "Length"), h("dd", {}, before ? `${count(before)} + ` : "", counted(tokens, "token"), before === null && " more")),
    finish && h("div", {}, h("dt", {}, "End"), h("dd", {}, finish)),
  );
}

/** @param {{id: string}} props of the message that is written */
function Progress({ id }) {
  const { stage, began } = runs.value.get(id) ?? { stage: "elsewhere", began: 0 };
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const seconds = Math.floor((performance.now() - began) / 1000);
  const words = {
    waiting: "Waiting for a connection of the browser",
    asking: seconds >= 2 ? `Waiting for the first token, ${seconds} s` : "Waiting for the first token",
    writing: "Writing",
    elsewhere: "Being written in another tab",
  }[stage];
  return h("div", { class: `progress ${stage}` }, h("span", { class: "pulse" }), h("span", { class: "muted small" }, words));
}

/**
 * Which of several messages at this place is shown.
 * @param {{talk: Talk, id: string}} props
 */
function Branches({ talk, id }) {
  const ids = talk.siblings(id);
  if (ids.length < 2) return null;
  const at = ids.indexOf(id);
  /** @param {number} step */
  const walk = (step) => {
    const next = ids[(at + step + ids.length) % ids.length];
    talk.choose(next);
    focusMessage(next, step < 0 ? BEFORE : AFTER);
  };
  return h("div", { class: "branches", role: "group", "aria-label": "Versions of this message" },
    h(IconButton, { glyph: "left", label: BEFORE, small: true, onClick: () => walk(-1) }),
    h("span", { class: "small" }, `${at + 1} of ${ids.length}`),
    h(IconButton, { glyph: "right", label: AFTER, small: true, onClick: () => walk(1) }),
  );
}

/** @param {{talk: Talk, message: MessageData, last: boolean, onEdit: () => void}} props */
function Actions({ talk, message, last, onEdit }) {
  const { id, role, state, content } = message;
  const first = talk.path.value[0] === id;
  const isAnswer = role === "assistant";
  return h("div", { class: "actions", role: "toolbar", "aria-label": "What to do with this message" },
    h(CopyButton, { text: content, label: "Copy message" }),
    h(IconButton, { glyph: "edit", label: "Edit", small: true, onClick: onEdit }),
    (isAnswer || role === "user") && h(IconButton, { glyph: "retry", label: isAnswer ? "Answer again" : "Answer from here", small: true, onClick: () => (void retry(talk, id), focusMessage(talk.path.peek().at(-1))) }),
    isAnswer && h(IconButton, { glyph: "search", label: "Look inside", small: true, onClick: () => (lookInto(talk.id, id), inspect(message.tokens ? "tokens" : "raw")) }),
    isAnswer && last && content && h(IconButton, { glyph: "forward", label: state === "done" ? "Continue this answer" : "Continue", small: true, onClick: () => continueAnswer(talk, id) }),
    !first && h(IconButton, { glyph: "up", label: UP, small: true, onClick: () => (talk.move(id, -1), focusMessage(id, UP)) }),
    !last && h(IconButton, { glyph: "down", label: DOWN, small: true, onClick: () => (talk.move(id, 1), focusMessage(id, DOWN)) }),
    h(IconButton, { glyph: "trash", label: "Delete", small: true, onClick: () => deleteMessage(talk, id) }),
  );
}

/**
 * A message's text and role, to be changed in place or kept beside the old one.
 * @param {{talk: Talk, message: MessageData, onDone: () => void}} props
 */
function Editor({ talk, message, onDone }) {
  const area = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const [role, setRole] = useState(message.role);
  useEffect(() => area.current?.focus(), []);
  /** @param {boolean} branch */
  const finish = (branch) => {
    onDone();
    editMessage(talk, message.id, { role, content: area.current?.value ?? "" }, branch);
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      onDone();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.stopPropagation();
      finish(message.role === "user");
    }
  };
  return h("div", { class: "editor", onKeyDown: key },
    h("textarea", { ref: area, class: "input", "aria-label": "Text of the message", rows: Math.min(16, message.content.split("\n").length + 2), defaultValue: message.content }),
    h("div", { class: "row" },
      h("select", { class: "input small", "aria-label": "Role", value: role, onChange: (/** @type {any} */ event) => setRole(event.currentTarget.value) },
        Object.keys(ROLES).map((name) => h("option", { key: name, value: name }, name)),
      ),
      h("span", { class: "spring" }),
      h("button", { type: "button", class: "button small quiet", onClick: onDone }, "Cancel"),
      h("button", { type: "button", class: "button small", onClick: () => finish(false) }, "Save"),
      message.role === "user" && h("button", { type: "button", class: "button small primary", onClick: () => finish(true) }, "Send as a new version"),
    ),
  );
}
