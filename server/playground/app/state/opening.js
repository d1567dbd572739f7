/** Requests from elsewhere, as conversations. */
import { modelsById } from "../api/server.js";
import { fromRequest, UNSHOWN_FIELDS } from "../talk/given.js";
import { titleOf } from "./actions.js";
import { begin } from "./library.js";
import { notify } from "./notices.js";

const CONTINUES = ["add_generation_prompt", "continue_final_message"];

/**
 * A request as a new conversation: its messages, and its settings. A notice names what has no place here.
 * @param {Record<string, any>} body of a chat request
 */
export function openRequest(body) {
  const { settings, messages } = fromRequest(body);
  const continues = body.continue_final_message === true && messages.at(-1)?.role === "assistant";
  // An answer that stands last can be continued here as well.
  const left = UNSHOWN_FIELDS.filter((name) => body[name] != null && !(continues && CONTINUES.includes(name)));
  if (settings.model !== null && !modelsById.peek().has(settings.model)) {
    left.unshift(`the model ${settings.model}, which is not here`);
    settings.model = null;
  }
  const talk = begin(settings);
  talk.changeSettings(settings);
  let last = null;
  for (const message of messages) last = talk.add(last, message);
  if (continues && last) talk.change(last, { state: "stopped" });
  const first = messages.find(({ role }) => role === "user");
  talk.changeRecord({ title: first ? titleOf(first.content ?? "") : "" });
  notify(left.length ? `Opened without ${left.join(", ")}` : "Opened as a conversation");
}
