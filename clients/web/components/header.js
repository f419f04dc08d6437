// Above the chat: its title, the model it speaks to, and the doors to everything else.

import { html, useEffect } from "../vendor/htm-preact.js";
import { startNew, titleOf } from "../conversations.js";
import { focusComposer, togglePanel } from "../shortcuts.js";
import { changeSettings, currentModel, set } from "../store.js";
import { toggleTheme } from "../theme.js";
import { IconButton } from "./icons.js";

/** @param {{state: import("../store.js").State, conversation: import("../tree.js").Conversation}} props */
export function Header({ state, conversation }) {
  const title = titleOf(conversation);
  const newChat = () => (startNew(), focusComposer());
  useEffect(() => {
    document.title = `${title} · Rookery`;
  }, [title]);
  return html`<header class="header">
    <${IconButton} icon="menu" label="Chats" id="chats" class="only-narrow" onClick=${() => set({ drawer: true })} />
    <h1>${title}</h1>
    <${ModelPicker} models=${state.models} />
    <nav aria-label="Tools">
      <${IconButton} icon="plus" label="New chat" class="only-narrow" onClick=${newChat} />
      <${IconButton}
        icon="state"
        label="Memory"
        aria-pressed=${state.panel === "memory"}
        onClick=${() => togglePanel("memory")}
      />
      <${IconButton}
        icon="sliders"
        label="Settings"
        aria-pressed=${state.panel === "settings"}
        onClick=${() => togglePanel("settings")}
      />
      <${IconButton} icon="plug" label="Connect your app" onClick=${() => set({ dialog: "connect" })} />
      <${IconButton}
        icon=${document.documentElement.dataset.theme === "dark" ? "sun" : "moon"}
        label="Light or dark"
        class="only-wide"
        onClick=${toggleTheme}
      />
      <${IconButton} icon="help" label="Keyboard shortcuts" class="only-wide" onClick=${() => set({ dialog: "help" })} />
    </nav>
  </header>`;
}

/** @param {{models: import("../api.js").Model[]}} props */
function ModelPicker({ models }) {
  const model = currentModel();
  if (!model) return null;
  if (models.length === 1) return html`<span class="model" title="The model this server serves">${model.id}</span>`;
  return html`<select
    class="model"
    aria-label="Model"
    value=${model.id}
    onChange=${(/** @type {any} */ event) => changeSettings({ model: event.target.value })}
  >
    ${models.map(({ id }) => html`<option key=${id} value=${id}>${id}</option>`)}
  </select>`;
}
