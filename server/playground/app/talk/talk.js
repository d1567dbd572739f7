/** A conversation: a tree of messages, of which one path is shown. */
import { batch, computed, signal } from "../core/ui.js";
import { newId } from "../core/ids.js";
import { noSettings } from "./types.js";

/**
 * @typedef {import("./types.js").Message} Message
 * @typedef {import("./types.js").TalkRecord} TalkRecord
 * @typedef {import("./types.js").Settings} Settings
 */

/** What has changed of a conversation, and so is to be saved. */
export class Changes {
  constructor() {
    this.record = false;
    /** @type {Set<string>} */
    this.messages = new Set();
    /** @type {Set<string>} */
    this.removed = new Set();
  }

  get any() {
    return this.record || this.messages.size > 0 || this.removed.size > 0;
  }
}

let lastOrder = 0;

/** A number above all that were given before. */
function nextOrder() {
  lastOrder = Math.max(Date.now(), lastOrder + 0.001);
  return lastOrder;
}

/**
 * The record of a new conversation.
 * @param {Settings} [settings]
 * @param {string | null} [owner]
 * @returns {TalkRecord}
 */
export function newRecord(settings = noSettings(), owner = null) {
  const now = Date.now();
  const draft = { text: "", images: [] };
  return { id: newId(), title: "", created: now, updated: now, settings, chosen: {}, draft, columns: [], owner };
}

export class Talk {
  /**
   * @param {TalkRecord} record
   * @param {Message[]} [messages] in any order
   */
  constructor(record, messages = []) {
    this.id = record.id;
    this.record = signal(record);
    /** @type {Map<string, import("../core/ui.js").Signal<Message>>} */
    this.messages = new Map(messages.map((message) => [message.id, signal(message)]));
    /** Counts what changes the tree; messages' texts do not. */
    this.shape = signal(0);
    this.changes = new Changes();
    /** Called after each change. */
    this.onChange = () => {};
    /** By parent, `""` for the root: ids in order. */
    this.children = computed(() => this.#children());
    /** Ids from the root to the last message that is shown. */
    this.path = computed(() => this.#path());
    const last = computed(() => this.messages.get(this.path.value.at(-1) ?? "")?.value);
    // Of the last message what does not change with every token of it, so that what depends on it is not made anew.
    this.lastRole = computed(() => last.value?.role);
    this.lastError = computed(() => last.value?.outcome?.error);
    /** What the last message says once it is written; undefined while it is. */
    this.lastText = computed(() => (last.value?.state === "writing" ? undefined : (last.value?.content ?? "")));
    this.settings = computed(() => this.record.value.settings);
  }

  #children() {
    this.shape.value;
    /** @type {Map<string, Message[]>} */
    const found = new Map();
    for (const { value: message } of [...this.messages.values()].map((one) => ({ value: one.peek() }))) {
      const parent = message.parent !== null && this.messages.has(message.parent) ? message.parent : "";
      const list = found.get(parent);
      if (list) list.push(message);
      else found.set(parent, [message]);
    }
    for (const list of found.values()) list.sort((a, b) => a.order - b.order);
    return new Map([...found].map(([parent, list]) => [parent, list.map((message) => message.id)]));
  }

  #path() {
    const { chosen } = this.record.value;
    const children = this.children.value;
    const path = [];
    for (let parent = ""; ; ) {
      const ids = children.get(parent);
      if (!ids) return path;
      parent = ids.includes(chosen[parent]) ? chosen[parent] : ids[ids.length - 1];
      path.push(parent);
    }
  }

  /**
   * A message as it is now, without taking part in its changes.
   * @param {string} id
   */
  peek(id) {
    const message = this.messages.get(id);
    if (!message) throw new Error("no such message");
    return message.peek();
  }

  /** The messages of the path, as they are now. */
  shown() {
    return this.path.peek().map((id) => this.peek(id));
  }

  /**
   * The messages of one parent, among which one can walk.
   * @param {string} id of one of them
   */
  siblings(id) {
    return this.children.value.get(this.#parentKey(id)) ?? [id];
  }

  /** @param {string} id */
  #parentKey(id) {
    const { parent } = this.peek(id);
    return parent !== null && this.messages.has(parent) ? parent : "";
  }

  /**
   * Add a message behind another, and show it.
   * @param {string | null} parent
   * @param {Partial<Message> & Pick<Message, "role">} message
   * @returns {string} its id
   */
  add(parent, message) {
    const id = newId();
    batch(() => {
      this.messages.set(id, signal({ content: "", state: "done", ...message, id, talk: this.id, parent, order: nextOrder() }));
      this.shape.value++;
      this.changes.messages.add(id);
      this.choose(id);
    });
    return id;
  }

  /**
   * @param {string} id
   * @param {Partial<Message>} change
   */
  change(id, change) {
    const message = this.messages.get(id);
    if (!message) return;
    const moved = "parent" in change || "order" in change;
    batch(() => {
      message.value = { ...message.peek(), ...change };
      if (moved) this.shape.value++;
    });
    this.changes.messages.add(id);
    this.#changed();
  }

  /** @param {Partial<TalkRecord>} change */
  changeRecord(change) {
    this.record.value = { ...this.record.peek(), ...change };
    this.changes.record = true;
    this.#changed();
  }

  /** @param {Partial<Settings>} change */
  changeSettings(change) {
    this.changeRecord({ settings: { ...this.record.peek().settings, ...change } });
  }

  /**
   * Let the path lead through a message.
   * @param {string} id
   */
  choose(id) {
    const { chosen } = this.record.peek();
    this.changeRecord({ chosen: { ...chosen, [this.#parentKey(id)]: id }, updated: Date.now() });
  }

  /**
   * Take one message out; what followed it follows the one before it.
   * @param {string} id
   * @returns {() => void} puts it back where it was
   */
  remove(id) {
    const removed = this.peek(id);
    const children = this.children.peek().get(id) ?? [];
    const { chosen } = this.record.peek();
    const key = this.#parentKey(id);
    batch(() => {
      for (const child of children) this.change(child, { parent: removed.parent });
      this.messages.delete(id);
      this.changes.removed.add(id);
      this.shape.value++;
      const next = children.includes(chosen[id]) ? chosen[id] : children[children.length - 1];
      if (next) this.changeRecord({ chosen: { ...chosen, [key]: next } });
    });
    this.#changed();
    return () => {
      batch(() => {
        this.messages.set(id, signal(removed));
        for (const child of children) if (this.messages.has(child)) this.change(child, { parent: id });
        this.changes.removed.delete(id);
        this.changes.messages.add(id);
        this.shape.value++;
        this.changeRecord({ chosen: { ...this.record.peek().chosen, ...chosen, [key]: id } });
      });
    };
  }

  /**
   * Exchange a message with its neighbour on the path. What branches off there sees them exchanged too.
   * @param {string} id
   * @param {-1 | 1} step
   */
  move(id, step) {
    const path = this.path.peek();
    const at = path.indexOf(id);
    const other = path[at + step];
    if (at < 0 || !other) return;
    const [first, second] = step < 0 ? [other, id] : [id, other];
    const upper = this.peek(first);
    const lower = this.peek(second);
    const below = this.children.peek().get(second) ?? [];
    const aside = (this.children.peek().get(first) ?? []).filter((child) => child !== second);
    const { chosen } = this.record.peek();
    batch(() => {
      this.change(second, { parent: upper.parent, order: upper.order });
      this.change(first, { parent: second, order: lower.order });
      for (const child of below) this.change(child, { parent: first });
      for (const child of aside) this.change(child, { parent: second });
      const { [first]: _, [second]: behind, ...rest } = chosen;
      const key = this.#parentKey(second);
      this.changeRecord({ chosen: { ...rest, [key]: second, [second]: first, ...(behind ? { [first]: behind } : {}) } });
    });
  }

  /**
   * Take over what another tab has saved. What this tab has changed and not saved yet stays as it is here.
   * @param {TalkRecord} record
   * @param {Message[]} messages all there are
   */
  merge(record, messages) {
    const kept = new Set(messages.map((message) => message.id));
    batch(() => {
      let moved = false;
      for (const message of messages) {
        if (this.changes.messages.has(message.id) || this.changes.removed.has(message.id)) continue;
        const known = this.messages.get(message.id);
        moved ||= !known || known.peek().parent !== message.parent || known.peek().order !== message.order;
        if (known) known.value = message;
        else this.messages.set(message.id, signal(message));
      }
      for (const id of [...this.messages.keys()]) {
        if (!kept.has(id) && !this.changes.messages.has(id)) moved = this.messages.delete(id) || moved;
      }
      if (moved) this.shape.value++;
      if (!this.changes.record) this.record.value = record;
    });
  }

  #changed() {
    this.onChange();
  }
}
