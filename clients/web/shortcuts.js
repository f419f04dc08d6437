// Keyboard shortcuts, in one table that the help dialog shows too.

import { regenerate, stop } from "./chat.js";
import { startNew } from "./conversations.js";
import { current, get, set } from "./store.js";
import { toggleTheme } from "./theme.js";
import { shownTurns } from "./tree.js";

/**
 * @typedef {object} Shortcut
 * @property {string[]} keys as they are shown; "Mod" is Ctrl, or ⌘ on a Mac
 * @property {string} does
 * @property {(event: KeyboardEvent) => boolean} [matches] absent where the composer handles the key itself
 * @property {() => void} [run]
 */

const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

/** @param {KeyboardEvent} event */
const mod = (event) => (isMac ? event.metaKey : event.ctrlKey) && !event.altKey;

/** @type {Shortcut[]} */
export const SHORTCUTS = [
  { keys: ["Enter"], does: "Send" },
  { keys: ["Shift", "Enter"], does: "New line" },
  { keys: ["↑"], does: "Edit the last message (in the empty box)" },
  {
    keys: ["Esc"],
    does: "Stop the reply",
    matches: (event) => event.key === "Escape" && !document.querySelector("dialog[open]"),
    run: () => stop(get().currentId),
  },
  {
    keys: ["Mod", "Shift", "O"],
    does: "New chat",
    matches: (event) => mod(event) && event.shiftKey && event.code === "KeyO",
    run() {
      startNew();
      focusComposer();
    },
  },
  {
    keys: ["Mod", "K"],
    does: "Search chats",
    matches: (event) => mod(event) && !event.shiftKey && event.code === "KeyK",
    run() {
      set({ drawer: true });
      requestAnimationFrame(() => document.getElementById("search")?.focus());
    },
  },
  {
    keys: ["Mod", "Shift", "R"],
    does: "Ask again",
    matches: (event) => mod(event) && event.shiftKey && event.code === "KeyR",
    run() {
      const last = shownTurns(current()).at(-1);
      if (last?.role === "assistant") regenerate(last);
    },
  },
  {
    keys: ["Mod", "."],
    does: "Settings",
    matches: (event) => mod(event) && event.key === ".",
    run: () => togglePanel("settings"),
  },
  {
    keys: ["Mod", ";"],
    does: "Memory",
    matches: (event) => mod(event) && event.key === ";",
    run: () => togglePanel("memory"),
  },
  {
    keys: ["Mod", "Shift", "L"],
    does: "Light or dark",
    matches: (event) => mod(event) && event.shiftKey && event.code === "KeyL",
    run: toggleTheme,
  },
  {
    keys: ["Mod", "/"],
    does: "This list",
    matches: (event) => mod(event) && event.key === "/",
    run: () => set({ dialog: get().dialog ? null : "help" }),
  },
];

/** @param {string} key */
export const keyName = (key) => (key === "Mod" ? (isMac ? "⌘" : "Ctrl") : key);

/** @param {KeyboardEvent} event */
export function onShortcut(event) {
  const found = SHORTCUTS.find(({ matches }) => matches?.(event));
  if (!found?.run) return;
  event.preventDefault();
  found.run();
}

export function focusComposer() {
  requestAnimationFrame(() => document.getElementById("composer")?.focus());
}

/** @param {"settings" | "memory"} panel */
export function togglePanel(panel) {
  set({ panel: get().panel === panel ? null : panel });
}
