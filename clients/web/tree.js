// A conversation as a tree. Editing a message or asking again adds a branch beside the old one; nothing is lost.
// Every function here is pure: it returns a new conversation and shares what did not change.

/**
 * @typedef {object} Turn
 * @property {string} id
 * @property {string | null} parent null for the root only
 * @property {"root" | "user" | "assistant"} role
 * @property {string} content
 * @property {number} created milliseconds since 1970
 * @property {string[]} children in the order they were made
 * @property {string | null} chosen the child that is shown
 * @property {string} [reasoning] what the model thought before its reply
 * @property {number} [thoughtMs] how long it thought
 * @property {string} [model] that replied
 * @property {string} [finish] "stop", "length", or "stopped" by the user; absent while it runs
 * @property {string} [error] why the reply failed
 * @property {Stats} [stats]
 * @property {string} [session] id of the stored state after this turn
 *
 * @typedef {object} Stats
 * @property {number} ttftMs time to the first token
 * @property {number} decodeMs from the first token to the last
 * @property {import("./api.js").Usage} [usage] absent when the reply was stopped
 *
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title "" until the first message names it
 * @property {number} created
 * @property {number} updated
 * @property {string} system
 * @property {boolean} [stateful] each turn is kept as a state on the server
 * @property {Record<string, Turn>} turns
 */

export const ROOT = "root";

/** An id that works on pages without HTTPS too, where crypto.randomUUID is missing. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @returns {Conversation} */
export function emptyConversation() {
  const now = Date.now();
  /** @type {Turn} */
  const root = { id: ROOT, parent: null, role: "root", content: "", created: now, children: [], chosen: null };
  return { id: newId(), title: "", created: now, updated: now, system: "", turns: { [ROOT]: root } };
}

/**
 * The turns that are shown, first to last, without the root.
 *
 * @param {Conversation} conversation
 * @returns {Turn[]}
 */
export function shownTurns({ turns }) {
  const shown = [];
  for (let id = turns[ROOT].chosen; id; id = turns[id].chosen) shown.push(turns[id]);
  return shown;
}

/**
 * The turns from the first to this one.
 *
 * @param {Conversation} conversation
 * @param {string} id
 * @returns {Turn[]}
 */
export function turnsUpTo({ turns }, id) {
  const path = [];
  for (let turn = turns[id]; turn.parent; turn = turns[turn.parent]) path.push(turn);
  return path.reverse();
}

/**
 * The turn a new message would follow.
 *
 * @param {Conversation} conversation
 * @returns {string}
 */
export function lastTurnId(conversation) {
  return shownTurns(conversation).at(-1)?.id ?? ROOT;
}

/**
 * Add a turn below `parent` and show it.
 *
 * @param {Conversation} conversation
 * @param {string} parent
 * @param {Pick<Turn, "role" | "content"> & Partial<Turn>} fields
 * @returns {[Conversation, string]} and the new turn's id
 */
export function addTurn(conversation, parent, fields) {
  const id = newId();
  const above = conversation.turns[parent];
  const turns = {
    ...conversation.turns,
    [parent]: { ...above, children: [...above.children, id], chosen: id },
    [id]: { created: Date.now(), ...fields, id, parent, children: [], chosen: null },
  };
  return [{ ...conversation, turns, updated: Date.now() }, id];
}

/**
 * @param {Conversation} conversation
 * @param {string} id
 * @param {Partial<Turn>} fields
 * @returns {Conversation}
 */
export function changeTurn(conversation, id, fields) {
  return { ...conversation, turns: { ...conversation.turns, [id]: { ...conversation.turns[id], ...fields } } };
}

/**
 * Show this branch.
 *
 * @param {Conversation} conversation
 * @param {string} id
 * @returns {Conversation}
 */
export function chooseTurn(conversation, id) {
  const parent = conversation.turns[id].parent ?? ROOT;
  return changeTurn(conversation, parent, { chosen: id });
}

/**
 * Show the conversation up to this turn; what comes after stays as a branch.
 *
 * @param {Conversation} conversation
 * @param {string} id
 * @returns {Conversation}
 */
export function rewindTo(conversation, id) {
  return changeTurn(conversation, id, { chosen: null });
}

/**
 * A turn's place among its branches.
 *
 * @param {Conversation} conversation
 * @param {Turn} turn
 * @returns {{ids: string[], index: number}}
 */
export function branches(conversation, turn) {
  const ids = conversation.turns[turn.parent ?? ROOT].children;
  return { ids, index: ids.indexOf(turn.id) };
}

/**
 * A conversation of its own with the turns up to this one.
 *
 * @param {Conversation} conversation
 * @param {string} id
 * @returns {Conversation}
 */
export function copyUpTo(conversation, id) {
  let copy = { ...emptyConversation(), title: conversation.title, system: conversation.system };
  copy.stateful = conversation.stateful;
  copy = changeTurn(copy, ROOT, { session: conversation.turns[ROOT].session });
  let parent = ROOT;
  for (const turn of turnsUpTo(conversation, id)) [copy, parent] = addTurn(copy, parent, turn);
  return copy;
}

/**
 * What the API is sent: the system prompt and these turns. Empty replies are left out.
 *
 * @param {string} system
 * @param {Turn[]} turns
 * @returns {{role: string, content: string}[]}
 */
export function toMessages(system, turns) {
  const said = turns.filter(({ role, content }) => role !== "root" && content !== "");
  const first = system.trim() ? [{ role: "system", content: system }] : [];
  return [...first, ...said.map(({ role, content }) => ({ role, content }))];
}
