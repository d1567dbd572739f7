/** Where a message is written: text, images, and how many tokens it would cost. */
import { h, useComputed, useEffect, useLayoutEffect, useRef, useState } from "../core/ui.js";
import { lazy } from "../core/lazy.js";
import { Glyph, IconButton } from "../core/glyphs.js";
import { link, modelOf, models, takesRequests } from "../api/server.js";
import { areWritten } from "../talk/runs.js";
import { speech, stopShown } from "../state/saying.js";
import { columns } from "../state/library.js";
import { notify } from "../state/notices.js";
import { isPhone } from "./panes.js";

const Tokens = lazy(async () => (await import("./tokens.js")).Tokens);

export function Composer() {
  const talks = columns.value;
  const [talk] = talks;
  const { draft } = talk.record.value;
  const area = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const picker = useRef(/** @type {HTMLInputElement | null} */ (null));
  const [over, setOver] = useState(false);
  const sees = talks.some((one) => modelOf(one.settings.value)?.capabilities?.input.includes("image"));
  const ready = talks.every((one) => takesRequests(modelOf(one.settings.value)));
  const writes = useComputed(() => areWritten(columns.value)).value;
  const missing = models.value.length ? talks.map((one) => one.settings.value).find((settings) => !modelOf(settings))?.model : null;
  const isEmpty = !draft.text.trim() && !draft.images.length;
  const canAnswer = talks.some((one) => isOpen(one));
  useLayoutEffect(() => fit(area.current), [draft.text]);
  useEffect(() => {
    if (!isPhone.peek()) area.current?.focus();
  }, []);

  const goes = useRef(false);
  const go = async () => {
    if (!ready || writes || goes.current || (isEmpty && !canAnswer)) return;
    goes.current = true;
    const spoken = await speech();
    goes.current = false;
    if (!spoken) return; // the draft stays
    const { text, images } = talk.record.peek().draft;
    talk.changeRecord({ draft: { text: "", images: [] } });
    void spoken.send(talks, { text: text.trim() ? text : "", images });
    area.current?.focus();
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    if (event.isComposing || event.altKey) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (!event.shiftKey && !isPhone.peek()))) {
      event.preventDefault();
      go();
    } else if (event.key === "ArrowUp" && !draft.text) {
      const sent = talk.shown().filter(({ role }) => role === "user").at(-1);
      if (sent) talk.changeRecord({ draft: { ...draft, text: sent.content } });
      event.preventDefault();
    }
  };
  /** @param {File[]} files */
  const take = async (files) => {
    if (!files.length) return;
    if (!sees) return notify("This model takes no images");
    const images = await import("./images.js").catch(() => null);
    if (!images) return notify("A part of the page could not be loaded; reload it.");
    await images.addImages(talk, files);
  };
  /** @param {DragEvent} event */
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    void take([...(event.dataTransfer?.files ?? [])]);
  };
  /** @param {ClipboardEvent} event */
  const paste = (event) => {
    // What is copied elsewhere may come as text and as a file at once.
    const images = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (images.length) event.preventDefault();
    void take(images);
  };
  /** @param {number} index */
  const drop1 = (index) => talk.changeRecord({ draft: { ...draft, images: draft.images.filter((_, at) => at !== index) } });
  return h("div", { id: "composer", class: `composer ${over ? "over" : ""}`, onDragOver: (/** @type {DragEvent} */ event) => (event.preventDefault(), setOver(true)), onDragLeave: () => setOver(false), onDrop: drop },
    h("div", { class: "box" },
      draft.images.length > 0 && h("ul", { class: "pictures" }, draft.images.map((url, index) => h("li", { key: index },
        h("img", { src: url, alt: `Image ${index + 1}` }), h(IconButton, { glyph: "close", label: `Remove image ${index + 1}`, small: true, onClick: () => drop1(index) })))),
      h("textarea", {
        ref: area, rows: 1, "aria-label": "Message", value: draft.text,
        placeholder: ready ? (talks.length > 1 ? "Ask all columns" : "Type a message") : missing ? `This server has no model ${missing}; choose another` : `${link.value === "unreachable" ? "The server cannot be reached" : "The model is not ready yet"}; you can type already`,
        onInput: (/** @type {any} */ event) => talk.changeRecord({ draft: { ...draft, text: event.currentTarget.value } }),
        onKeyDown: key, onPaste: paste,
      }),
      h("div", { class: "row" },
        sees && h(IconButton, { glyph: "image", label: "Add images", onClick: () => picker.current?.click() }),
        sees && h("input", { ref: picker, type: "file", accept: "image/*", multiple: true, hidden: true, onChange: (/** @type {any} */ event) => (void take([...event.currentTarget.files]), (event.currentTarget.value = "")) }),
        h(Tokens, { talk }),
        h("span", { class: "spring" }),
        writes
          ? h("button", { type: "button", class: "button", onClick: stopShown, "aria-keyshortcuts": "Escape" }, h(Glyph, { name: "stop" }), "Stop")
          : h("button", { type: "button", class: "button primary", disabled: !ready || (isEmpty && !canAnswer), onClick: go, title: isEmpty && canAnswer ? "Answer the conversation as it stands" : "Send (Enter)" }, h(Glyph, { name: "send" }), isEmpty && canAnswer ? "Run" : "Send"),
      ),
    ),
  );
}

/**
 * Whether the last message has no answer yet, as one that was deleted or that was edited in its place.
 * @param {import("../talk/talk.js").Talk} talk
 */
function isOpen(talk) {
  const role = talk.lastRole.value;
  return role !== undefined && role !== "assistant";
}

/**
 * As high as its text, up to what the style allows.
 * @param {HTMLTextAreaElement | null} area
 */
function fit(area) {
  if (!area) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
