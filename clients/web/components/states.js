// States the server keeps for this chat, one after each reply: go back to any, go on from it elsewhere, give it a name,
// take it away as a file, bring it back. Hidden where the server keeps none.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { saveFile } from "../clipboard.js";
import { open, put, titleOf } from "../conversations.js";
import { inBytes } from "../memory.js";
import { download, fork, forget, listSaved, upload } from "../sessions.js";
import { focusComposer } from "../shortcuts.js";
import { toast } from "../store.js";
import { changeTurn, copyUpTo, emptyConversation, rewindTo, ROOT } from "../tree.js";
import { Icon, IconButton } from "./icons.js";

/**
 * @typedef {import("../tree.js").Conversation} Conversation
 * @typedef {import("../memory.js").Point} Point
 */

/**
 * Run something that asks the server, and say so when it fails.
 *
 * @param {() => Promise<void>} work
 */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    toast(error instanceof Error ? error.message : String(error));
  }
}

/** @param {{state: import("../store.js").State, conversation: Conversation, points: Point[]}} props */
export function StatesSection({ state, conversation, points }) {
  const [saved, setSaved] = useState(/** @type {import("../sessions.js").SavedState[]} */ ([]));
  const refresh = () => attempt(async () => setSaved(await listSaved()));
  useEffect(() => {
    if (state.sessions) refresh();
  }, [state.sessions]);
  if (!state.sessions) return null;
  const busy = !!state.running[conversation.id];
  const keep = (/** @type {any} */ event) => put({ ...conversation, stateful: event.target.checked });
  return html`<section>
      <h3>States of this chat</h3>
      <label class="check">
        <input type="checkbox" checked=${!!conversation.stateful} disabled=${busy} onChange=${keep} />
        Keep them on the server
      </label>
      <p class="hint">
        The server then remembers every turn: a message costs its own words only, not the whole chat again, and each
        turn's state can be saved or taken away.
      </p>
      ${points.length > 0 &&
      html`<ol class="states" aria-label="Turns">
        ${points.map((point) => html`<${Turn} key=${point.turnId} ...${{ point, conversation, busy, refresh }} />`)}
      </ol>`}
    </section>
    <section>
      <h3>Saved states</h3>
      <${Saved} saved=${saved} refresh=${refresh} />
      <${Upload} />
    </section>`;
}

/** @param {{point: Point, conversation: Conversation, busy: boolean, refresh: () => void}} props */
function Turn({ point: { turnId, number, tokens, cached }, conversation, busy, refresh }) {
  const [naming, setNaming] = useState(false);
  const { session, children } = conversation.turns[turnId];
  const rewind = () => (put(rewindTo(conversation, turnId)), focusComposer());
  function forkChat() {
    const copy = copyUpTo(conversation, turnId);
    put({ ...copy, title: `${titleOf(conversation)} (fork)` });
    open(copy.id);
    focusComposer();
  }
  const takeAway = () =>
    attempt(async () => saveFile(await download(session ?? ""), `state-${number}-${session}.safetensors`));
  /** @param {string} name */
  const save = (name) =>
    attempt(async () => {
      if (!(await fork(session ?? "", name))) throw new Error("This state is no longer on the server.");
      toast(`Saved as ${name}.`);
      refresh();
    });
  if (naming) return html`<li><${Naming} done=${() => setNaming(false)} save=${save} /></li>`;
  return html`<li>
    <span class="state-facts">
      <b>${number}</b> ${tokens.toLocaleString("en")} tokens${cached > 0 && html`<span class="hint">, ${cached.toLocaleString("en")} remembered</span>`}
    </span>
    <span class="state-tools">
      <${IconButton} icon="rewind" label=${`Rewind to reply ${number}`} disabled=${busy || !children.length} onClick=${rewind} />
      <${IconButton} icon="fork" label=${`Fork after reply ${number}`} onClick=${forkChat} />
      ${session &&
      html`<${IconButton} icon="save" label=${`Save the state after reply ${number}`} onClick=${() => setNaming(true)} />
        <${IconButton} icon="download" label=${`Download the state after reply ${number}`} onClick=${takeAway} />`}
    </span>
  </li>`;
}

/** @param {{save: (name: string) => void, done: () => void}} props */
function Naming({ save, done }) {
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => input.current?.focus(), []);
  /** @param {Event} event */
  function submit(event) {
    event.preventDefault();
    save(input.current?.value ?? "");
    done();
  }
  return html`<form class="naming" onSubmit=${submit}>
    <input
      ref=${input}
      aria-label="Name of the saved state"
      placeholder="name"
      required
      maxlength="100"
      pattern="(?!web-)[A-Za-z0-9][A-Za-z0-9_.:\\-]*"
      title="Letters, digits and . _ : -"
    />
    <button type="submit">Save</button>
    <button type="button" class="quiet" onClick=${done}>Cancel</button>
  </form>`;
}

/**
 * A chat that goes on from a state whose words this page has not seen.
 *
 * @param {string} session
 * @param {string} title
 */
function goOnFrom(session, title) {
  const conversation = { ...changeTurn(emptyConversation(), ROOT, { session }), title, stateful: true };
  put(conversation);
  open(conversation.id);
  focusComposer();
}

/** @param {{saved: import("../sessions.js").SavedState[], refresh: () => void}} props */
function Saved({ saved, refresh }) {
  if (!saved.length) return html`<p class="hint">None yet. A saved state keeps its name until it is deleted.</p>`;
  /** @param {string} id */
  const remove = (id) => attempt(async () => (await forget([id]), refresh()));
  return html`<ul class="states" aria-label="Saved states">
    ${saved.map(
      ({ id, tokens, bytes }) => html`<li key=${id}>
        <button type="button" class="quiet saved" title="New chat from this state" onClick=${() => goOnFrom(id, id)}>
          <b>${id}</b><span class="hint">${tokens.toLocaleString("en")} tokens in ${inBytes(bytes)}</span>
        </button>
        <${IconButton} icon="trash" label=${`Delete the state ${id}`} onClick=${() => remove(id)} />
      </li>`,
    )}
  </ul>`;
}

function Upload() {
  const file = useRef(/** @type {HTMLInputElement | null} */ (null));
  /** @param {any} event */
  async function onChange({ target }) {
    const [chosen] = target.files;
    if (chosen) await attempt(async () => goOnFrom(await upload(chosen), chosen.name.replace(/\.safetensors$/, "")));
    target.value = "";
  }
  return html`<button type="button" onClick=${() => file.current?.click()}><${Icon} name="upload" />Upload a state</button>
    <input ref=${file} type="file" accept=".safetensors" hidden aria-label="State to upload" onChange=${onChange} />`;
}
