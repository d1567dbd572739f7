/**
 * The browser's database: conversations, messages, presets.
 *
 * `UPGRADES[n]` leads from version n to version n + 1, and runs in the transaction of the upgrade. One that has been
 * published is never changed: `tests/server/playground` opens databases as each of them left them.
 */

/** @type {((database: IDBDatabase, transaction: IDBTransaction) => void)[]} */
export const UPGRADES = [
  (database) => {
    database.createObjectStore("talks", { keyPath: "id" });
    database.createObjectStore("messages", { keyPath: "id" }).createIndex("talk", "talk");
  },
  (database) => {
    database.createObjectStore("presets", { keyPath: "id" });
  },
];

const NAME = "headrace";

/**
 * @typedef {"talks" | "messages" | "presets"} Store
 * @typedef {{store: Store, put?: {id: string}, remove?: string}} Write
 */

/** @type {Promise<IDBDatabase> | null} */
let opened = null;

/**
 * The open database. Rejects where the browser keeps none, as in some private windows.
 * @returns {Promise<IDBDatabase>}
 */
export function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, UPGRADES.length);
    request.onupgradeneeded = (event) => {
      const transaction = request.transaction;
      if (!transaction) return;
      for (const upgrade of UPGRADES.slice(event.oldVersion)) upgrade(request.result, transaction);
    };
    request.onsuccess = () => {
      // A newer page in another tab must not wait for this one.
      request.result.onversionchange = () => (request.result.close(), (opened = null));
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/**
 * Everything in a store.
 * @param {Store} store
 * @returns {Promise<any[]>}
 */
export async function readAll(store) {
  return done((await database()).transaction(store).objectStore(store).getAll());
}

/**
 * One entry, undefined if there is none.
 * @param {Store} store
 * @param {string} id
 * @returns {Promise<any>}
 */
export async function readOne(store, id) {
  return done((await database()).transaction(store).objectStore(store).get(id));
}

/**
 * The messages of a conversation, in no order.
 * @param {string} talk
 * @returns {Promise<import("../talk/types.js").Message[]>}
 */
export async function readMessages(talk) {
  return done((await database()).transaction("messages").objectStore("messages").index("talk").getAll(talk));
}

/**
 * Write and remove, all or nothing.
 * @param {Write[]} writes
 * @returns {Promise<void>} when it is on the disk
 */
export async function write(writes) {
  if (!writes.length) return;
  const transaction = (await database()).transaction([...new Set(writes.map(({ store }) => store))], "readwrite");
  for (const { store, put, remove } of writes) {
    if (put) transaction.objectStore(store).put(put);
    if (remove) transaction.objectStore(store).delete(remove);
  }
  // At once, and not when the page next has time: it may be on its way out.
  transaction.commit();
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}
