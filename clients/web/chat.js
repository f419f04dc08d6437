// Asking for replies: send, edit, ask again, stop. A reply grows in its turn of the conversation's tree.

import { ApiError, streamChat } from "./api.js";
import { find, forgetSurplus, put } from "./conversations.js";
import { askForKey, connect } from "./server.js";
import { askInSession } from "./sessions.js";
import { requestFields } from "./settings.js";
import { current, currentModel, get, set } from "./store.js";
import { addTurn, changeTurn, lastTurnId, ROOT, toMessages, turnsUpTo } from "./tree.js";

/**
 * @typedef {import("./tree.js").Conversation} Conversation
 * @typedef {import("./tree.js").Turn} Turn
 */

const SAVE_EVERY_MS = 2000;

/** @param {string} text */
export async function send(text) {
  const conversation = current();
  if (!text.trim() || get().running[conversation.id]) return;
  const title = conversation.title || titleFrom(text);
  await say({ ...conversation, title }, lastTurnId(conversation), text);
}

/**
 * Say something else instead of an earlier message: a branch beside it.
 *
 * @param {Turn} turn of the user
 * @param {string} text
 */
export async function edit(turn, text) {
  if (!text.trim()) return;
  await say(current(), turn.parent ?? ROOT, text);
}

/**
 * Ask again: a branch beside this reply.
 *
 * @param {Turn} turn of the assistant
 */
export async function regenerate(turn) {
  await reply(current(), turn.parent ?? ROOT);
}

/** @param {string} conversationId */
export function stop(conversationId) {
  get().running[conversationId]?.abort();
}

/** @param {string} text */
function titleFrom(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

/**
 * @param {Conversation} conversation
 * @param {string} parent
 * @param {string} text
 */
async function say(conversation, parent, text) {
  const [said, id] = addTurn(conversation, parent, { role: "user", content: text });
  await reply(said, id);
}

/**
 * Let the model reply to a turn.
 *
 * @param {Conversation} conversation
 * @param {string} userTurn
 */
async function reply(conversation, userTurn) {
  if (get().running[conversation.id]) return;
  const model = currentModel()?.id ?? "";
  const [begun, id] = addTurn(conversation, userTurn, { role: "assistant", content: "", model });
  put(begun);
  const abort = new AbortController();
  set({ running: { ...get().running, [conversation.id]: abort }, announcement: "Waiting for the reply." });
  const writer = new Writer(conversation.id, id);
  try {
    const fields = { model, ...requestFields(get().settings) };
    const chunks = begun.stateful
      ? askInSession(begun, userTurn, fields, abort.signal, (session) => writer.note({ session }))
      : streamChat({ ...fields, messages: toMessages(begun.system, turnsUpTo(begun, userTurn)) }, abort.signal);
    for await (const chunk of chunks) writer.add(chunk);
    writer.end({ finish: writer.finish });
    if (begun.stateful) await forgetSurplus(begun.id);
  } catch (error) {
    if (abort.signal.aborted) {
      writer.end({ finish: "stopped" });
    } else if (error instanceof ApiError) {
      writer.end({ finish: "failed", error: explain(error) });
      if (error.status === 401) askForKey();
      if (error.code === "model_not_found") connect(); // another model is served there by now
    } else {
      writer.end({ finish: "failed", error: `The page could not read the reply: ${error}` });
      throw error;
    }
  } finally {
    const { [conversation.id]: _, ...running } = get().running;
    set({ running });
  }
}

/** @param {ApiError} error */
function explain(error) {
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const sentence = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  return `${sentence}${/[.!?…]$/.test(sentence) ? "" : "."}${wait}`;
}

/** Writes a streamed reply into its turn, at most once a frame, and measures it. */
class Writer {
  /**
   * @param {string} conversationId
   * @param {string} turnId
   */
  constructor(conversationId, turnId) {
    this.conversationId = conversationId;
    this.turnId = turnId;
    this.asked = performance.now();
    this.saved = this.asked;
    this.finish = "stop";
    /** @type {Partial<Turn>} what the turn says so far */
    this.fields = { content: "" };
    this.first = 0;
    this.last = 0;
    this.frame = 0;
  }

  /** @param {any} chunk of a chat completion stream */
  add(chunk) {
    const choice = chunk.choices[0];
    const { content = "", reasoning_content: thought = "" } = choice?.delta ?? {};
    if (content || thought) {
      this.last = performance.now();
      this.first ||= this.last;
    }
    if (thought) this.fields.reasoning = (this.fields.reasoning ?? "") + thought;
    if (content) {
      if (this.fields.reasoning && this.fields.thoughtMs === undefined) this.fields.thoughtMs = this.last - this.first;
      this.fields.content += content;
    }
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    if (chunk.usage) this.usage = chunk.usage;
    this.frame ||= requestAnimationFrame(() => this.show());
  }

  /** @param {Partial<Turn>} fields */
  note(fields) {
    Object.assign(this.fields, fields);
  }

  show() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const conversation = find(this.conversationId);
    if (!conversation) return; // deleted meanwhile
    const keep = performance.now() - this.saved > SAVE_EVERY_MS || this.fields.finish !== undefined;
    if (keep) this.saved = performance.now();
    put(changeTurn(conversation, this.turnId, this.fields), { keep });
  }

  /** @param {Partial<Turn>} fields */
  end(fields) {
    if (this.first) {
      this.fields.stats = { ttftMs: this.first - this.asked, decodeMs: this.last - this.first, usage: this.usage };
    }
    Object.assign(this.fields, fields);
    this.show();
    const said = fields.error ? `The reply failed: ${fields.error}` : `Reply: ${(this.fields.content ?? "").slice(0, 600)}`;
    set({ announcement: said });
  }
}
