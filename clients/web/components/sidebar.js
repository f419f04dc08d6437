// The list of conversations: new, search, rename, delete, export and import.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { saveFile } from "../clipboard.js";
import { isEmpty, open, put, remove, rename, search, startNew, titleOf } from "../conversations.js";
import { fromJson, toJson } from "../exchange.js";
import { focusComposer, isComposing } from "../shortcuts.js";
import { set, toast } from "../store.js";
import { Icon, IconButton } from "./icons.js";

/** @typedef {import("../tree.js").Conversation} Conversation */

const DAY_MS = 86_400_000;

/** @param {{state: import("../store.js").State}} props */
export function Sidebar({ state }) {
  const [words, setWords] = useState("");
  const shown = search(state.conversations, words).filter((one) => !isEmpty(one) || (one.id === state.currentId && !words));
  const closer = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    if (!state.drawer) return;
    closer.current?.querySelector("button")?.focus();
    return () => document.getElementById("chats")?.focus();
  }, [state.drawer]);
  const newChat = () => (startNew(), focusComposer());
  return html`<aside class="sidebar" aria-label="Chats">
    <div class="brand">
      <${Icon} name="bird" />
      <span>Rookery</span>
      <span class="only-narrow" ref=${closer}><${IconButton} icon="close" label="Close" onClick=${() => set({ drawer: false })} /></span>
    </div>
    <button type="button" class="new-chat" onClick=${newChat}><${Icon} name="plus" />New chat</button>
    <label class="search">
      <${Icon} name="search" />
      <input
        id="search"
        type="search"
        placeholder="Search"
        aria-label="Search chats"
        value=${words}
        onInput=${(/** @type {any} */ event) => setWords(event.target.value)}
      />
    </label>
    <nav class="conversations" aria-label="Conversations">
      ${groups(shown).map(
        ([name, conversations]) => html`<section key=${name}>
          <h2>${name}</h2>
          <ul>
            ${conversations.map((one) => html`<${Entry} key=${one.id} conversation=${one} state=${state} />`)}
          </ul>
        </section>`,
      )}
      ${!shown.length && html`<p class="nothing">No chat has these words.</p>`}
    </nav>
    <${Exchange} conversations=${state.conversations} />
  </aside>`;
}

/**
 * By age, newest first.
 *
 * @param {Conversation[]} conversations
 * @returns {[string, Conversation[]][]}
 */
function groups(conversations) {
  const today = new Date().setHours(0, 0, 0, 0);
  /** @type {[string, number][]} */
  const ages = [["Today", today], ["Yesterday", today - DAY_MS], ["Last week", today - 7 * DAY_MS], ["Earlier", 0]];
  return ages
    .map(([name, from], index) => {
      const before = index ? ages[index - 1][1] : Infinity;
      return /** @type {[string, Conversation[]]} */ ([
        name,
        conversations.filter(({ updated }) => updated >= from && updated < before),
      ]);
    })
    .filter(([, members]) => members.length);
}

/** @param {{conversation: Conversation, state: import("../store.js").State}} props */
function Entry({ conversation, state }) {
  const [renaming, setRenaming] = useState(false);
  const title = titleOf(conversation);
  if (renaming) return html`<li><${Rename} conversation=${conversation} done=${() => setRenaming(false)} /></li>`;
  const isCurrent = conversation.id === state.currentId;
  return html`<li class=${isCurrent ? "current" : ""}>
    <button
      type="button"
      class="title"
      aria-current=${isCurrent ? "page" : undefined}
      onClick=${() => open(conversation.id)}
      onDblClick=${() => setRenaming(true)}
    >
      ${state.running[conversation.id] && html`<span class="pulse" title="A reply is under way"></span>`}${title}
    </button>
    ${!isEmpty(conversation) &&
    html`<span class="entry-tools">
      <${IconButton} icon="edit" label=${`Rename ${title}`} onClick=${() => setRenaming(true)} />
      <${IconButton} icon="trash" label=${`Delete ${title}`} onClick=${() => remove(conversation)} />
    </span>`}
  </li>`;
}

/** @param {{conversation: Conversation, done: () => void}} props */
function Rename({ conversation, done }) {
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => input.current?.select(), []);
  function finish() {
    rename(conversation, input.current?.value ?? "");
    done();
  }
  /** @param {KeyboardEvent} event */
  function onKey(event) {
    if (isComposing(event)) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      done();
    } else if (event.key === "Enter") finish();
  }
  return html`<input
    class="rename"
    ref=${input}
    aria-label="Title"
    value=${titleOf(conversation)}
    onKeyDown=${onKey}
    onBlur=${finish}
  />`;
}

/** @param {{conversations: Conversation[]}} props */
function Exchange({ conversations }) {
  const file = useRef(/** @type {HTMLInputElement | null} */ (null));
  function exportAll() {
    const kept = conversations.filter((one) => !isEmpty(one));
    const day = new Date().toISOString().slice(0, 10);
    saveFile(new Blob([toJson(kept)], { type: "application/json" }), `rookery-chats-${day}.json`);
  }
  /** @param {any} event */
  async function importFile(event) {
    const [chosen] = event.target.files;
    if (!chosen) return;
    try {
      const found = fromJson(await chosen.text());
      for (const conversation of found) put(conversation);
      if (found.length) open(found[0].id);
      toast(`Imported ${found.length} ${found.length === 1 ? "chat" : "chats"}.`);
    } catch (error) {
      toast(`Nothing was imported: ${error instanceof Error ? error.message : error}.`);
    }
    event.target.value = "";
  }
  return html`<footer class="exchange">
    <button type="button" class="quiet" onClick=${exportAll}><${Icon} name="download" />Export</button>
    <button type="button" class="quiet" onClick=${() => file.current?.click()}><${Icon} name="upload" />Import</button>
    <input ref=${file} type="file" accept=".json,application/json" hidden onChange=${importFile} aria-label="File to import" />
  </footer>`;
}
