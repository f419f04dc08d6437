// What a chat weighs: its state, which never grows, beside the keys and values a transformer would have to keep.

import { shownTurns } from "./tree.js";

/**
 * @typedef {object} Point one reply of the chat
 * @property {string} turnId
 * @property {number} number of the exchange, from 1
 * @property {number} tokens seen by then
 * @property {number} cached of its prompt, read from a stored state instead of computed
 * @property {boolean} stored whether the server keeps the state after it
 */

const VALUE_BYTES = 2; // half precision

/**
 * Bytes a transformer of the same depth and width keeps for each token: a key and a value in every layer.
 *
 * @param {import("./api.js").ModelMeta} meta
 */
export function cacheBytesPerToken({ layers, width }) {
  return 2 * layers * width * VALUE_BYTES;
}

/**
 * @param {import("./tree.js").Conversation} conversation
 * @returns {Point[]} of the replies shown whose tokens were counted
 */
export function pointsOf(conversation) {
  const replies = shownTurns(conversation).filter(({ role }) => role === "assistant");
  return replies.flatMap(({ id, stats, session }, index) => {
    const usage = stats?.usage;
    if (!usage) return [];
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    return [{ turnId: id, number: index + 1, tokens: usage.prompt_tokens + usage.completion_tokens, cached, stored: !!session }];
  });
}

/**
 * @param {number} bytes
 * @returns {string} in the unit that reads best
 */
export function inBytes(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3));
  const value = bytes / 1000 ** power;
  return `${power === 0 || value >= 100 ? Math.round(value) : value.toPrecision(3).replace(/\.?0+$/, "")} ${units[power]}`;
}
