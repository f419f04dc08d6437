// The one place of the page's state. Components read it with `useStore`; everything else goes through `set`.

import { useEffect, useState } from "./vendor/htm-preact.js";
import { readSettings, writeSettings } from "./settings.js";

/**
 * @typedef {import("./tree.js").Conversation} Conversation
 * @typedef {import("./api.js").Model} Model
 *
 * @typedef {object} State
 * @property {Conversation[]} conversations newest first
 * @property {string} currentId
 * @property {"connecting" | "loading" | "unreachable" | "locked" | "ready" | "failed"} phase of the server
 * @property {number | null} progress of loading, 0 to 1
 * @property {Model[]} models
 * @property {boolean} sessions whether the server keeps states for us
 * @property {import("./settings.js").Settings} settings
 * @property {Record<string, AbortController>} running reply under way, by conversation id
 * @property {"settings" | "memory" | null} panel
 * @property {"help" | "connect" | "key" | null} dialog
 * @property {boolean} drawer conversations shown over the chat (phone)
 * @property {Toast | null} toast
 * @property {string} announcement for screen readers
 *
 * @typedef {{text: string, action?: {label: string, run: () => void}}} Toast
 */

/** @type {State} */
let state = {
  conversations: [],
  currentId: "",
  phase: "connecting",
  progress: null,
  models: [],
  sessions: false,
  settings: readSettings(),
  running: {},
  panel: null,
  dialog: null,
  drawer: false,
  toast: null,
  announcement: "",
};

/** @type {Set<() => void>} */
const listeners = new Set();

export const get = () => state;

/** @param {Partial<State>} change */
export function set(change) {
  state = { ...state, ...change };
  for (const listener of listeners) listener();
}

/** Renders the calling component again when the state has changed. */
export function useStore() {
  const [, render] = useState(state);
  useEffect(() => {
    const listener = () => render(state);
    listeners.add(listener);
    listener();
    return () => void listeners.delete(listener);
  }, []);
  return state;
}

/** @returns {Conversation} */
export function current() {
  const found = state.conversations.find(({ id }) => id === state.currentId);
  if (!found) throw new Error("no conversation is open");
  return found;
}

/** The model the next reply comes from. */
export function currentModel() {
  return state.models.find(({ id }) => id === state.settings.model) ?? state.models[0];
}

/** @param {Partial<import("./settings.js").Settings>} change */
export function changeSettings(change) {
  const settings = { ...state.settings, ...change };
  set({ settings });
  writeSettings(settings);
}

/** How long a toast can be acted on. */
export const UNDO_MS = 8000;

/**
 * @param {string} text
 * @param {Toast["action"]} [action]
 */
export function toast(text, action) {
  const shown = { text, action };
  set({ toast: shown });
  setTimeout(() => state.toast === shown && set({ toast: null }), action ? UNDO_MS : UNDO_MS / 2);
}
