// Conversations on this device: one IndexedDB record each.

/** @typedef {import("./tree.js").Conversation} Conversation */

const NAME = "rookery";
const STORE = "conversations";

/** @type {Promise<IDBDatabase> | undefined} */
let opened;

/** @returns {Promise<IDBDatabase>} */
function open() {
  opened ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  return opened;
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} ask
 * @returns {Promise<T>} once the transaction is complete
 */
async function transact(mode, ask) {
  const transaction = (await open()).transaction(STORE, mode);
  const asked = ask(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(asked.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** @returns {Promise<Conversation[]>} */
export const readAll = () => transact("readonly", (store) => store.getAll());

/** @param {Conversation} conversation */
export const write = (conversation) => transact("readwrite", (store) => store.put(conversation));

/** @param {string} id */
export const remove = (id) => transact("readwrite", (store) => store.delete(id));
