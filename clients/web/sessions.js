// States kept by the server: one for each turn, so that any turn can be gone back to, forked, or taken away as a file.
// A turn's state is never written again: a reply is made in a copy of the state before it.

import { ApiError, request, streamChat } from "./api.js";
import { newId, ROOT, toMessages, turnsUpTo } from "./tree.js";

/**
 * @typedef {import("./tree.js").Conversation} Conversation
 *
 * @typedef {{id: string, tokens: number, bytes: number, updated: number}} SavedState
 */

const OWN = "web-"; // of the page's own sessions; the user's have other names
const KEPT = 16; // states of one chat; older turns are read again when somebody goes back to them

/** @param {string} session */
const path = (session) => `v1/sessions/${encodeURIComponent(session)}`;
const newSession = () => `${OWN}${newId()}`;

/** @returns {Promise<boolean>} */
export async function hasSessions() {
  return (await unlessMissing(request("v1/sessions?limit=1"))) !== null;
}

/**
 * Ask for a reply in a session of its own: a copy of the last stored state on the way to this turn, which is told
 * only what was said since.
 *
 * @param {Conversation} conversation
 * @param {string} userTurn
 * @param {object} fields
 * @param {AbortSignal} signal
 * @param {(session: string) => void} stored called when the state after the reply is kept
 */
export async function* askInSession(conversation, userTurn, fields, signal, stored) {
  const session = newSession();
  const messages = await continued(conversation, userTurn, session);
  let complete = false;
  try {
    yield* streamChat({ ...fields, messages, session_id: session }, signal);
    complete = true;
    stored(session);
  } finally {
    if (!complete) await forget([session]);
  }
}

/**
 * Make `session` a copy of the nearest stored state, where there is one.
 *
 * @param {Conversation} conversation
 * @param {string} userTurn
 * @param {string} session
 * @returns {Promise<{role: string, content: string}[]>} what it has yet to be told
 */
async function continued(conversation, userTurn, session) {
  const root = conversation.turns[ROOT];
  const turns = [root, ...turnsUpTo(conversation, userTurn)];
  for (let index = turns.length - 1; index >= 0; index--) {
    const before = turns[index].session;
    if (before && (await fork(before, session))) return toMessages("", turns.slice(index + 1));
  }
  if (root.session) throw new ApiError(404, { message: "The state this chat goes on from is no longer on the server." });
  return toMessages(conversation.system, turns);
}

/**
 * @param {string} from
 * @param {string} to
 * @returns {Promise<boolean>} false when there is no such state any more
 */
export async function fork(from, to) {
  return (await unlessMissing(request(`${path(from)}/fork`, { json: { id: to } }))) !== null;
}

/**
 * @param {string} session
 * @returns {Promise<Blob>} a safetensors file
 */
export async function download(session) {
  return (await request(`${path(session)}/state`)).blob();
}

/**
 * @param {Blob} file
 * @returns {Promise<string>} the new session's id
 */
export async function upload(file) {
  const session = newSession();
  await request(`${path(session)}/state`, { method: "PUT", body: file });
  return session;
}

/** @returns {Promise<SavedState[]>} those the user has named */
export async function listSaved() {
  const { data } = await (await request("v1/sessions?limit=1000")).json();
  return data.filter((/** @type {SavedState} */ { id }) => !id.startsWith(OWN));
}

/** @param {string[]} sessions that are not needed any more; those already gone are no matter */
export async function forget(sessions) {
  for (const session of sessions) await unlessMissing(request(path(session), { method: "DELETE" }));
}

/**
 * The sessions the page has made for a conversation; those the user has named are not its to delete.
 *
 * @param {Conversation} conversation
 * @returns {string[]} oldest first
 */
export function sessionsOf({ turns }) {
  const kept = Object.values(turns).filter(({ session }) => session?.startsWith(OWN));
  return kept.sort((a, b) => a.created - b.created).map(({ session }) => /** @type {string} */ (session));
}

/**
 * What a conversation keeps too much of; the state an uploaded chat began with always stays.
 *
 * @param {Conversation} conversation
 * @returns {string[]}
 */
export function surplusOf(conversation) {
  const own = sessionsOf(conversation).filter((session) => session !== conversation.turns[ROOT].session);
  return own.slice(0, Math.max(0, own.length - KEPT));
}

/**
 * @param {Promise<Response>} asked
 * @returns {Promise<Response | null>} null for a 404
 */
async function unlessMissing(asked) {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return null;
    throw error;
  }
}
