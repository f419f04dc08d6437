// The page: conversations on the left, the chat in the middle, a panel on the right.

import { html, useEffect } from "../vendor/htm-preact.js";
import { drawerCovers, onShortcut, panelCovers } from "../shortcuts.js";
import { current, set, useStore } from "../store.js";
import { Composer } from "./composer.js";
import { ConnectDialog, HelpDialog, KeyDialog } from "./dialogs.js";
import { Header } from "./header.js";
import { MemoryPanel } from "./memory_panel.js";
import { SettingsPanel } from "./settings_panel.js";
import { Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";

export function App() {
  const state = useStore();
  useEffect(() => {
    addEventListener("keydown", onShortcut);
    return () => removeEventListener("keydown", onShortcut);
  }, []);
  const conversation = current();
  const shown = state.drawer || state.panel;
  const covered = (state.drawer && drawerCovers()) || (state.panel && panelCovers());
  return html`
    <div class=${`page ${state.drawer ? "with-drawer" : ""} ${state.panel ? "with-panel" : ""}`}>
      <${Sidebar} state=${state} />
      <main class="chat" inert=${!!covered}>
        <${Header} state=${state} conversation=${conversation} />
        <${Thread} key=${conversation.id} state=${state} conversation=${conversation} />
        <${Composer} state=${state} conversation=${conversation} />
      </main>
      ${state.panel === "settings" && html`<${SettingsPanel} state=${state} conversation=${conversation} />`}
      ${state.panel === "memory" && html`<${MemoryPanel} state=${state} conversation=${conversation} />`}
      ${shown && html`<div class="veil" onClick=${() => set({ drawer: false, panel: null })}></div>`}
    </div>
    ${state.dialog === "help" && html`<${HelpDialog} />`}
    ${state.dialog === "connect" && html`<${ConnectDialog} state=${state} />`}
    ${state.dialog === "key" && html`<${KeyDialog} />`}
    ${state.toast && html`<${ToastView} toast=${state.toast} />`}
    <div class="off-screen" role="status">${state.announcement}</div>
  `;
}

/** @param {{toast: import("../store.js").Toast}} props */
function ToastView({ toast: { text, action } }) {
  function run() {
    set({ toast: null });
    action?.run();
  }
  return html`<div class="toast" role="alert">
    <span>${text}</span>
    ${action && html`<button type="button" class="quiet" onClick=${run}>${action.label}</button>`}
  </div>`;
}
