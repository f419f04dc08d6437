// States kept by the server: one for each turn, so that any turn can be gone back to, forked, or taken away as a file.

import { ApiError, request, streamChat } from "./api.js";
import { messagesUpTo, newId } from "./tree.js";

/**
 * @typedef {import("./tree.js").Conversation} Conversation
 */

/** @returns {Promise<boolean>} */
export async function hasSessions() {
  try {
    await request("v1/sessions");
    return true;
  } catch (error) {
    if (error instanceof ApiError && [404, 405, 501].includes(error.status)) return false;
    throw error;
  }
}

/**
 * Ask for a reply in a session of its own: a fork of the state after the turn before, which costs the new message
 * only; or, where that turn has none, a new session that reads the whole history once.
 *
 * @param {Conversation} conversation
 * @param {string} userTurn
 * @param {object} fields
 * @param {AbortSignal} signal
 * @param {(session: string) => void} committed called when the state after the reply is stored
 */
export async function* askInSession(conversation, userTurn, fields, signal, committed) {
  const turn = conversation.turns[userTurn];
  const before = conversation.turns[turn.parent ?? "root"].session;
  const session = newSessionId();
  const forked = before !== undefined && (await fork(before, session));
  const all = messagesUpTo(conversation, userTurn);
  const messages = forked ? all.slice(-1) : all;
  yield* streamChat({ ...fields, messages, session_id: session }, signal);
  committed(session);
}

export const newSessionId = () => `web-${newId()}`;

/**
 * @param {string} from
 * @param {string} to
 * @returns {Promise<boolean>} false when there is no such state any more
 */
export async function fork(from, to) {
  try {
    await request(`v1/sessions/${encodeURIComponent(from)}/fork`, { json: { id: to } });
    return true;
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return false;
    throw error;
  }
}

/**
 * @param {string} session
 * @returns {Promise<Blob>} a safetensors file
 */
export async function download(session) {
  return (await request(`v1/sessions/${encodeURIComponent(session)}/state`)).blob();
}

/**
 * @param {Blob} file
 * @returns {Promise<string>} the new session's id
 */
export async function upload(file) {
  const session = newSessionId();
  await request(`v1/sessions/${session}/state`, { method: "PUT", body: file });
  return session;
}
