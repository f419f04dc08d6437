// Conversations as a JSON file: everything a file says is checked and copied field by field, none of it is trusted.

import { ROOT, newId } from "./tree.js";

/**
 * @typedef {import("./tree.js").Conversation} Conversation
 * @typedef {import("./tree.js").Turn} Turn
 */

const FORMAT = "rookery-conversations";
const MAX_BYTES = 64 * 2 ** 20;

/**
 * @param {Conversation[]} conversations
 * @returns {string}
 */
export function toJson(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/**
 * The conversations of an exported file, with new ids, so that none replaces another.
 *
 * @param {string} text
 * @returns {Conversation[]}
 * @throws {Error} with a sentence for the user
 */
export function fromJson(text) {
  if (text.length > MAX_BYTES) throw new Error("the file is too large");
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("the file is not JSON");
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) {
    throw new Error("the file was not exported from this page");
  }
  return file.conversations.map(conversationOf);
}

/**
 * @param {any} given
 * @returns {Conversation}
 */
function conversationOf(given) {
  const now = Date.now();
  /** @type {Record<string, Turn>} */
  const turns = {};
  const above = Object.hasOwn(Object(given?.turns), ROOT) ? given.turns[ROOT] : fail("a conversation has no root");
  /** @type {[any, string, string | null][]} */
  const waiting = [[above, ROOT, null]];
  const seen = new Set([ROOT]);
  for (let next = waiting.pop(); next; next = waiting.pop()) {
    const [source, id, parent] = next;
    const ids = Array.isArray(source.children) ? source.children : fail("a turn has no list of children");
    for (const child of ids) {
      if (typeof child !== "string" || !/^[0-9a-f]{8,64}$/.test(child) || seen.has(child)) fail("a turn appears twice");
      if (!Object.hasOwn(given.turns, child)) fail("a turn is missing");
      seen.add(child);
      waiting.push([given.turns[child], child, id]);
    }
    turns[id] = turnOf(source, id, parent, ids);
  }
  return {
    id: newId(),
    title: text(given.title, 200),
    created: count(given.created) ?? now,
    updated: count(given.updated) ?? now,
    system: text(given.system),
    turns,
  };
}

/**
 * @param {any} given
 * @param {string} id
 * @param {string | null} parent
 * @param {string[]} children
 * @returns {Turn}
 */
function turnOf(given, id, parent, children) {
  const role = id === ROOT ? "root" : given.role;
  if (id !== ROOT && role !== "user" && role !== "assistant") fail("a turn has an unknown role");
  /** @type {Turn} */
  const turn = {
    id,
    parent,
    role,
    content: text(given.content),
    created: count(given.created) ?? Date.now(),
    children: [...children],
    chosen: children.includes(given.chosen) ? given.chosen : null,
  };
  if (role !== "assistant") return turn;
  turn.finish = text(given.finish, 20) || "stopped";
  if (given.reasoning) turn.reasoning = text(given.reasoning);
  if (given.error) turn.error = text(given.error, 2000);
  if (given.model) turn.model = text(given.model, 512);
  if (count(given.thoughtMs)) turn.thoughtMs = given.thoughtMs;
  const { ttftMs, decodeMs, usage } = given.stats ?? {};
  if (count(ttftMs) !== undefined && count(decodeMs) !== undefined) {
    turn.stats = { ttftMs, decodeMs };
    const counts = [usage?.prompt_tokens, usage?.completion_tokens].map(count);
    if (counts[0] !== undefined && counts[1] !== undefined) {
      turn.stats.usage = {
        prompt_tokens: counts[0],
        completion_tokens: counts[1],
        total_tokens: counts[0] + counts[1],
        prompt_tokens_details: { cached_tokens: count(usage.prompt_tokens_details?.cached_tokens) ?? 0 },
      };
    }
  }
  return turn;
}

/**
 * @param {unknown} value
 * @param {number} [limit]
 */
function text(value, limit = MAX_BYTES) {
  return typeof value === "string" ? value.slice(0, limit) : "";
}

/**
 * @param {unknown} value
 * @returns {number | undefined}
 */
function count(value) {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : undefined;
}

/**
 * @param {string} why
 * @returns {never}
 */
function fail(why) {
  throw new Error(why);
}
