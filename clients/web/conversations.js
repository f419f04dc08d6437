// What a user does with whole conversations: open, make, rename, delete, search, export, import.

import * as database from "./database.js";
import { forget, sessionsOf, surplusOf } from "./sessions.js";
import { get, set, toast, UNDO_MS } from "./store.js";
import { emptyConversation, shownTurns, ROOT } from "./tree.js";

/** @typedef {import("./tree.js").Conversation} Conversation */

/** @param {Conversation} conversation */
export const isEmpty = (conversation) => conversation.turns[ROOT].children.length === 0 && !conversation.turns[ROOT].session;

/** Read what this device holds and open the newest, or an empty one. */
export async function openStored() {
  /** @type {Conversation[]} */
  let stored = [];
  try {
    stored = await database.readAll();
  } catch (error) {
    toast(`Conversations cannot be kept in this browser: ${error}`);
  }
  stored.sort((a, b) => b.updated - a.updated);
  const conversations = stored.length ? stored : [emptyConversation()];
  set({ conversations, currentId: conversations[0].id });
}

/**
 * Put a changed or new conversation in its place, and on disk unless `keep` is false.
 *
 * @param {Conversation} conversation
 * @param {{keep?: boolean}} [options]
 */
export function put(conversation, { keep = true } = {}) {
  const others = get().conversations.filter(({ id }) => id !== conversation.id);
  const conversations = [conversation, ...others].sort((a, b) => b.updated - a.updated);
  set({ conversations });
  if (keep && !isEmpty(conversation)) save(conversation);
}

/** @param {Conversation} conversation */
function save(conversation) {
  database.write(conversation).catch((error) => toast(`This conversation could not be saved: ${error}`));
}

/** @param {string} id */
export const find = (id) => get().conversations.find((conversation) => conversation.id === id);

/** @param {string} id */
export function open(id) {
  set({ currentId: id, drawer: false });
}

/** Open an empty conversation. */
export function startNew() {
  const empty = get().conversations.find(isEmpty);
  const conversation = empty ? { ...empty, updated: Date.now() } : emptyConversation();
  put(conversation);
  open(conversation.id);
}

/**
 * @param {Conversation} conversation
 * @param {string} title
 */
export function rename(conversation, title) {
  if (title.trim()) put({ ...conversation, title: title.trim().slice(0, 200) });
}

/** @param {Conversation} conversation */
export function remove(conversation) {
  get().running[conversation.id]?.abort();
  const rest = get().conversations.filter(({ id }) => id !== conversation.id);
  if (!rest.length) rest.push(emptyConversation());
  set({ conversations: rest, currentId: get().currentId === conversation.id ? rest[0].id : get().currentId });
  database.remove(conversation.id).catch((error) => toast(`It could not be deleted: ${error}`));
  toast(`Deleted “${titleOf(conversation)}”.`, {
    label: "Undo",
    run() {
      put(conversation);
      open(conversation.id);
    },
  });
  setTimeout(() => find(conversation.id) || release(sessionsOf(conversation)), UNDO_MS);
}

/**
 * Give up states of the server that no conversation here refers to any more.
 *
 * @param {string[]} sessions
 */
async function release(sessions) {
  const used = new Set(get().conversations.flatMap(sessionsOf));
  try {
    await forget(sessions.filter((session) => !used.has(session)));
  } catch (error) {
    toast(`States of the server could not be deleted: ${error instanceof Error ? error.message : error}`);
  }
}

/**
 * Keep only the newest states of a conversation.
 *
 * @param {string} id
 */
export async function forgetSurplus(id) {
  const conversation = find(id);
  const surplus = new Set(conversation && surplusOf(conversation));
  if (!conversation || !surplus.size) return;
  const turns = Object.entries(conversation.turns).map(([name, { session, ...turn }]) =>
    /** @type {const} */ ([name, session && !surplus.has(session) ? { ...turn, session } : turn]),
  );
  put({ ...conversation, turns: Object.fromEntries(turns) });
  await release([...surplus]);
}

/** @param {Conversation} conversation */
export function titleOf(conversation) {
  return conversation.title || "New chat";
}

/**
 * Conversations with these words in their title or text, whatever the case.
 *
 * @param {Conversation[]} conversations
 * @param {string} words
 */
export function search(conversations, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  if (!wanted.length) return conversations;
  return conversations.filter((conversation) => {
    const texts = Object.values(conversation.turns).map((turn) => turn.content);
    const all = [conversation.title, ...texts].join("\n").toLowerCase();
    return wanted.every((word) => all.includes(word));
  });
}

/** @param {Conversation} conversation */
export function lastLine(conversation) {
  return shownTurns(conversation).at(-1)?.content.slice(0, 80) ?? "";
}
