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

/**
 * Whether the key belongs to an input method that is choosing characters. Safari ends the choice before it tells of the
 * key; 229 is how it marks such a key all the same.
 *
 * @param {KeyboardEvent} event
 */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** @type {Shortcut[]} */
export const SHORTCUTS = [
  { keys: ["Enter"], does: "Send" },
  { keys: ["Shift", "Enter"], does: "New line" },
  { keys: ["↑"], does: "Edit the last message (in the empty box)" },
  {
    keys: ["Esc"],
    does: "Stop the reply, or close what lies over the chat",
    matches: (event) => event.key === "Escape" && !document.querySelector("dialog[open]"),
    run() {
      const { drawer, panel, currentId } = get();
      if (drawer || (panel && panelCovers())) set({ drawer: false, panel: null });
      else stop(currentId);
    },
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
      set({ drawer: drawerCovers() });
      requestAnimationFrame(() => document.getElementById("search")?.focus());
    },
  },
  {
    keys: ["Mod", "Shift", "Enter"],
    does: "Ask again",
    matches: (event) => mod(event) && event.shiftKey && event.key === "Enter",
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
  if (isComposing(event)) return;
  const found = SHORTCUTS.find(({ matches }) => matches?.(event));
  if (!found?.run) return;
  event.preventDefault();
  found.run();
}

/** Whether the list of chats, when it is shown, lies over the chat. */
export const drawerCovers = () => matchMedia("(max-width: 760px)").matches;

/** Whether a panel does. */
export const panelCovers = () => matchMedia("(max-width: 1150px)").matches;

export function focusComposer() {
  requestAnimationFrame(() => document.getElementById("composer")?.focus());
}

/** @param {"settings" | "memory"} panel */
export function togglePanel(panel) {
  set({ panel: get().panel === panel ? null : panel });
}
