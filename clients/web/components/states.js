// States the server keeps for this chat: one after each reply. Placeholder-free: hidden where the server keeps none.

import { html } from "../vendor/htm-preact.js";

/** @param {{state: import("../store.js").State, conversation: import("../tree.js").Conversation, points: import("../memory.js").Point[]}} props */
export function StatesSection({ state }) {
  if (!state.sessions) return null;
  return html`<section></section>`;
}
