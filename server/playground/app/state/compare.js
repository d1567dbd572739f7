/** Conversations side by side, each with its own settings, asked the same. */
import { signal } from "../core/ui.js";
import { newRecord, Talk } from "../talk/talk.js";
import { adopt, columns, focused, forgetQuietly, showTalks } from "./library.js";

export const MOST_COLUMNS = 4;

/** Whether the others' last answers show how they differ from the first's. */
export const showsDifference = signal(false);

/** Set another conversation beside those that are shown: like the last of them, with what was said so far. */
export function addColumn() {
  const shown = columns.peek();
  if (shown.length >= MOST_COLUMNS) return;
  const model = /** @type {Talk} */ (shown.at(-1));
  const talk = adopt(new Talk(newRecord(structuredClone(model.settings.peek()), shown[0].id)));
  let parent = /** @type {string | null} */ (null);
  for (const { id: _, talk: __, parent: ___, order: ____, ...message } of model.shown()) parent = talk.add(parent, { ...message, state: message.state === "writing" ? "stopped" : message.state });
  talk.changeRecord({ title: shown[0].record.peek().title });
  set([...shown, talk]);
  focused.value = shown.length; // it was added for its settings to be changed
}

/**
 * Take a column away. The first can go as well: then the next takes its place.
 * @param {Talk} talk
 */
export function removeColumn(talk) {
  const left = columns.peek().filter((one) => one !== talk);
  if (!left.length) return;
  set(left);
  forgetQuietly(talk);
}

/** @param {Talk[]} talks */
function set(talks) {
  const [first, ...others] = talks;
  first.changeRecord({ owner: null, columns: others.map(({ id }) => id) });
  for (const other of others) other.changeRecord({ owner: first.id, columns: [] });
  if (!others.length) showsDifference.value = false;
  showTalks(talks);
}
