// System prompt of this chat, and how tokens are drawn in all of them.

import { html } from "../vendor/htm-preact.js";
import { put } from "../conversations.js";
import { EFFORTS, SAMPLING } from "../settings.js";
import { changeSettings, get, set } from "../store.js";
import { toggleTheme } from "../theme.js";
import { Panel } from "./panel.js";

/** @param {{state: import("../store.js").State, conversation: import("../tree.js").Conversation}} props */
export function SettingsPanel({ state: { settings }, conversation }) {
  const changed = Object.keys(settings.sampling).length > 0 || settings.effort !== "";
  return html`<${Panel} title="Settings">
    <section>
      <h3><label for="system">System prompt</label></h3>
      <p class="hint">Of this chat. ${conversation.stateful ? "Read once, with the first message." : "Empty: none is sent."}</p>
      <textarea
        id="system"
        rows="4"
        value=${conversation.system}
        onInput=${(/** @type {any} */ event) => put({ ...conversation, system: event.target.value })}
      ></textarea>
    </section>
    <section>
      <h3>Sampling</h3>
      <p class="hint">Of all chats. What is not set is left to the server.</p>
      ${SAMPLING.map((field) => html`<${Field} key=${field.name} field=${field} value=${settings.sampling[field.name]} />`)}
      <div class="field">
        <label for="effort">Reasoning effort</label>
        <select
          id="effort"
          value=${settings.effort}
          onChange=${(/** @type {any} */ event) => changeSettings({ effort: event.target.value })}
        >
          <option value="">as the model does</option>
          ${EFFORTS.map((effort) => html`<option key=${effort} value=${effort}>${effort}</option>`)}
        </select>
      </div>
      <button type="button" disabled=${!changed} onClick=${() => changeSettings({ sampling: {}, effort: "" })}>
        Back to the server's defaults
      </button>
    </section>
    <section class="only-narrow">
      <h3>Page</h3>
      <button type="button" onClick=${toggleTheme}>Light or dark</button>
      <button type="button" onClick=${() => set({ dialog: "connect" })}>Connect your app</button>
    </section>
  <//>`;
}

/** @param {{field: import("../settings.js").SamplingField, value: number | undefined}} props */
function Field({ field, value }) {
  const { name, label, hint, min, max, step, standard } = field;
  /** @param {any} event */
  function change({ target }) {
    const { [name]: _, ...others } = get().settings.sampling;
    const number = Number(target.value);
    const valid = target.value !== "" && number >= min && number <= max && (step < 1 || Number.isInteger(number));
    changeSettings({ sampling: valid ? { ...others, [name]: number } : others });
  }
  const id = `field-${name}`;
  return html`<div class=${`field ${value === undefined ? "" : "is-set"}`}>
    <label for=${id} title=${hint}>${label}</label>
    <input
      id=${id}
      type="number"
      inputmode="decimal"
      min=${min}
      max=${max}
      step=${step}
      title=${hint}
      placeholder=${standard ?? "any"}
      value=${value ?? ""}
      onChange=${change}
    />
    ${standard !== null &&
    html`<input
      type="range"
      aria-label=${`${label}, slider`}
      min=${min}
      max=${max}
      step=${step}
      value=${value ?? standard}
      onInput=${change}
    />`}
  </div>`;
}
