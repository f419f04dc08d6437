// Dialogs: shortcuts, connecting other programs, the API key. The browser's own <dialog> keeps the focus inside.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { baseUrl } from "../api.js";
import { copyText } from "../clipboard.js";
import { tryKey } from "../server.js";
import { apiKey } from "../settings.js";
import { keyName, SHORTCUTS } from "../shortcuts.js";
import { snippets } from "../snippets.js";
import { currentModel, set } from "../store.js";
import { IconButton } from "./icons.js";

const close = () => set({ dialog: null });

/** @param {{title: string, children: unknown}} props */
function Dialog({ title, children }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    const element = dialog.current;
    element?.showModal();
    return () => element?.close();
  }, []);
  /** @param {MouseEvent} event */
  const onClick = (event) => event.target === dialog.current && close(); // outside of it
  return html`<dialog ref=${dialog} aria-label=${title} onClose=${close} onClick=${onClick}>
    <div class="dialog-body">
      <div class="panel-head">
        <h2>${title}</h2>
        <${IconButton} icon="close" label="Close" onClick=${close} />
      </div>
      ${children}
    </div>
  </dialog>`;
}

export function HelpDialog() {
  return html`<${Dialog} title="Keyboard shortcuts">
    <dl class="shortcuts">
      ${SHORTCUTS.map(
        ({ keys, does }) => html`<div key=${does}>
          <dt>${does}</dt>
          <dd>${keys.map((key) => html`<kbd key=${key}>${keyName(key)}</kbd>`)}</dd>
        </div>`,
      )}
    </dl>
  <//>`;
}

/** @param {{state: import("../store.js").State}} props */
export function ConnectDialog({ state }) {
  const all = snippets({ baseUrl, model: currentModel()?.id ?? "MODEL", needsKey: apiKey.get() !== "" });
  const [chosen, setChosen] = useState("curl");
  const [copied, setCopied] = useState(false);
  const code = all[chosen];
  async function copy() {
    await copyText(code);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  }
  return html`<${Dialog} title="Connect your app">
    <p>Anything that speaks to OpenAI speaks to this server. Its address is <code>${baseUrl}</code>.</p>
    <div class="tabs" role="group" aria-label="Language">
      ${Object.keys(all).map(
        (name) => html`<button key=${name} type="button" aria-pressed=${name === chosen} onClick=${() => setChosen(name)}>
          ${name}
        </button>`,
      )}
    </div>
    <div class="code">
      <div class="code-bar"><span>${chosen}</span><button type="button" onClick=${copy}>${copied ? "Copied" : "Copy"}</button></div>
      <pre tabindex="0"><code>${code}</code></pre>
    </div>
    <p class="hint">Every route and field: <a href="docs" target="_blank">docs</a>.${state.sessions && " Add session_id to keep a chat's state on the server."}</p>
  <//>`;
}

export function KeyDialog() {
  const [failed, setFailed] = useState(false);
  const [remember, setRemember] = useState(false);
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  /** @param {Event} event */
  async function submit(event) {
    event.preventDefault();
    const taken = await tryKey(input.current?.value.trim() ?? "", remember);
    setFailed(!taken);
    if (!taken) input.current?.select();
  }
  return html`<${Dialog} title="API key">
    <form class="key-form" onSubmit=${submit}>
      <label for="key">This server asks for an API key.</label>
      <input id="key" ref=${input} type="password" autocomplete="off" spellcheck=${false} aria-invalid=${failed} />
      ${failed && html`<p class="failure" role="alert">The server does not know this key.</p>`}
      <label class="check">
        <input type="checkbox" checked=${remember} onChange=${(/** @type {any} */ event) => setRemember(event.target.checked)} />
        Remember it on this device
      </label>
      <button type="submit" class="primary">Connect</button>
    </form>
  <//>`;
}
