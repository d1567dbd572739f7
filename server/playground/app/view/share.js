/** Conversations out of the browser and into it: a link, files. */
import { h, useRef, useState } from "../core/ui.js";
import { copyText } from "../core/clipboard.js";
import { columns } from "../state/library.js";
import { notify } from "../state/notices.js";
import { exported, imported, LONGEST_LINK, linkOf } from "../state/transfer.js";
import { Dialog } from "./dialog.js";

/** @param {{onClose: () => void}} props */
export function ShareDialog({ onClose }) {
  const [fault, setFault] = useState("");
  const picker = useRef(/** @type {HTMLInputElement | null} */ (null));
  const talks = columns.value;
  const isEmpty = talks.every((talk) => talk.messages.size === 0);
  const link = async () => {
    const address = await linkOf(talks[0]);
    if (address.length > LONGEST_LINK) return setFault("This conversation is too long for a link; export it as a file.");
    if (await copyText(address)) notify("Link copied");
    else setFault(`The link could not be copied: ${address}`);
  };
  /** @param {File | undefined} file */
  const take = async (file) => {
    if (!file) return;
    try {
      const number = await imported(await file.text());
      notify(number === 1 ? "Conversation imported" : `${number} conversations imported`);
      onClose();
    } catch (error) {
      setFault(error instanceof RangeError ? `${error.message}.` : "This is no file of conversations.");
    }
  };
  return h(Dialog, { title: "Share and keep", onClose },
    h("div", { class: "stack" },
      fault && h("p", { class: "note error", role: "alert" }, fault),
      h(Choice, { title: "Copy a link", about: "It holds the messages that are shown and the settings, never the key. Whoever opens it needs access to a server.", disabled: isEmpty, onClick: link }),
      h(Choice, { title: "Export this conversation", about: "As JSON, with every branch and column.", disabled: isEmpty, onClick: async () => download(await exported(talks), "conversation") }),
      h(Choice, { title: "Export all conversations", about: "Everything that this browser keeps.", onClick: async () => download(await exported(), "conversations") }),
      h(Choice, { title: "Import a file", about: "What was exported here or elsewhere. It is added to what is there.", onClick: () => picker.current?.click() }),
      h("input", { ref: picker, type: "file", accept: "application/json,.json", hidden: true, "aria-label": "File to import", onChange: (/** @type {any} */ event) => void take(event.currentTarget.files[0]) }),
    ),
  );
}

/** @param {{title: string, about: string, disabled?: boolean, onClick: () => void}} props */
function Choice({ title, about, disabled, onClick }) {
  return h("button", { type: "button", class: "model-choice", disabled, onClick }, h("strong", {}, title), h("span", { class: "small muted" }, about));
}

/**
 * @param {string} text
 * @param {string} name
 */
function download(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = Object.assign(document.createElement("a"), { href: address, download: `headrace-${name}-${new Date().toISOString().slice(0, 10)}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
