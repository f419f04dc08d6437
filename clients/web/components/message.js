// One turn: what was said, what the model thought before, how fast it came, and what can be done with it.

import { Component, html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { edit, regenerate } from "../chat.js";
import { copyText } from "../clipboard.js";
import { put } from "../conversations.js";
import { focusComposer, isComposing } from "../shortcuts.js";
import { current } from "../store.js";
import { branches, chooseTurn } from "../tree.js";
import { Icon, IconButton } from "./icons.js";
import { Markdown } from "./markdown.js";

/** @typedef {import("../tree.js").Turn} Turn */

/**
 * @typedef {object} Props
 * @property {Turn} turn
 * @property {number} count branches at this place
 * @property {number} place of this one among them
 * @property {boolean} running it is being written
 * @property {boolean} busy some reply of the conversation is
 * @property {boolean} last
 */

export class Message extends Component {
  /** @param {Props} next turns are never changed in place, so that comparing is enough */
  shouldComponentUpdate(next) {
    const names = /** @type {(keyof Props)[]} */ (Object.keys(next));
    return names.some((name) => next[name] !== this.props[name]);
  }

  /** @param {Props} props */
  render(props) {
    return props.turn.role === "user" ? html`<${UserMessage} ...${props} />` : html`<${Reply} ...${props} />`;
  }
}

/** @param {Props} props */
function UserMessage({ turn, busy, ...place }) {
  const [editing, setEditing] = useState(false);
  const done = () => (setEditing(false), focusComposer());
  if (editing) return html`<li class="turn user editing"><${Editor} turn=${turn} done=${done} /></li>`;
  return html`<li class="turn user">
    <span class="off-screen">You said:</span>
    <div class="bubble">${turn.content}</div>
    <div class="tools">
      <${BranchSwitch} turn=${turn} busy=${busy} ...${place} />
      <${CopyButton} text=${turn.content} />
      <${IconButton} icon="edit" label="Edit" class="edit" disabled=${busy} onClick=${() => setEditing(true)} />
    </div>
  </li>`;
}

/** @param {{turn: Turn, done: () => void}} props */
function Editor({ turn, done }) {
  const box = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useEffect(() => {
    box.current?.focus();
    box.current?.setSelectionRange(turn.content.length, turn.content.length);
  }, []);
  function save() {
    const text = box.current?.value ?? "";
    done();
    if (text.trim() && text !== turn.content) edit(turn, text);
  }
  /** @param {KeyboardEvent} event */
  function onKey(event) {
    if (isComposing(event)) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      done();
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      save();
    }
  }
  const rows = Math.min(12, turn.content.split("\n").length + 1);
  return html`<textarea ref=${box} rows=${rows} aria-label="Edit message" onKeyDown=${onKey}>${turn.content}</textarea>
    <div class="editor-buttons">
      <span class="hint">The old message stays as a branch.</span>
      <button type="button" class="quiet" onClick=${done}>Cancel</button>
      <button type="button" class="primary" onClick=${save}>Send</button>
    </div>`;
}

/** @param {Props} props */
function Reply({ turn, running, busy, last, ...place }) {
  const waiting = running && !turn.content && !turn.reasoning;
  return html`<li class=${`turn assistant ${last ? "last" : ""}`} aria-busy=${running}>
    <span class="off-screen">${turn.model || "The model"} said:</span>
    ${turn.reasoning && html`<${Thinking} turn=${turn} running=${running} />`}
    ${waiting && html`<p class="waiting"><span></span><span></span><span></span><i class="off-screen">Waiting</i></p>`}
    ${turn.content && html`<${Markdown} text=${turn.content} />`}
    ${turn.error && html`<${Failure} turn=${turn} busy=${busy} />`}
    ${!running &&
    html`<div class="tools">
      <${BranchSwitch} turn=${turn} busy=${busy} ...${place} />
      ${turn.content && html`<${CopyButton} text=${turn.content} />`}
      ${!turn.error && html`<${IconButton} icon="retry" label="Ask again" disabled=${busy} onClick=${() => regenerate(turn)} />`}
      <${Facts} turn=${turn} />
    </div>`}
  </li>`;
}

/** @param {{turn: Turn, running: boolean}} props */
function Thinking({ turn, running }) {
  const thinking = running && !turn.content;
  const [open, setOpen] = useState(/** @type {boolean | null} */ (null)); // null: open while it thinks
  const { thoughtMs } = turn;
  const long = thoughtMs === undefined ? "" : thoughtMs < 1000 ? " for a moment" : ` for ${inSeconds(thoughtMs)}`;
  /** @param {Event} event */
  function toggle(event) {
    event.preventDefault();
    setOpen(!(open ?? thinking));
  }
  return html`<details class="thinking" open=${open ?? thinking}>
    <summary onClick=${toggle}><${Icon} name="right" />${thinking ? "Thinking …" : `Thought${long}`}</summary>
    <div class="thought">${turn.reasoning}</div>
  </details>`;
}

/** @param {{turn: Turn, busy: boolean}} props */
function Failure({ turn, busy }) {
  return html`<div class="failure" role="alert">
    <p>${turn.error}</p>
    <button type="button" disabled=${busy} onClick=${() => regenerate(turn)}>Try again</button>
  </div>`;
}

const MEASURABLE_MS = 10; // a reply that came in fewer came in one piece: that is the network's speed

/** @param {{turn: Turn}} props */
function Facts({ turn: { stats, finish } }) {
  const facts = [];
  const drawn = stats?.usage?.completion_tokens ?? 0;
  const speed = stats && drawn > 1 && stats.decodeMs > MEASURABLE_MS ? ((drawn - 1) / stats.decodeMs) * 1000 : 0;
  if (speed) facts.push(`${speed.toFixed(speed < 100 ? 1 : 0)} tokens/s`);
  if (stats) facts.push(`first after ${inSeconds(stats.ttftMs)}`);
  if (stats?.usage) {
    const { prompt_tokens, prompt_tokens_details } = stats.usage;
    const cached = prompt_tokens_details?.cached_tokens;
    facts.push(`${prompt_tokens}${cached ? ` (${cached} remembered)` : ""} + ${drawn} tokens`);
  }
  if (finish === "length") facts.push("cut at the token limit");
  if (finish === "stopped") facts.push("stopped");
  if (!finish) facts.push("interrupted");
  return html`<span class="facts">${facts.map((fact) => html`<span key=${fact}>${fact}</span>`)}</span>`;
}

/** @param {number} ms */
const inSeconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** @param {Pick<Props, "turn" | "busy" | "count" | "place">} props */
function BranchSwitch({ turn, busy, count, place }) {
  if (count < 2) return null;
  /** @param {number} step */
  function show(step) {
    const conversation = current();
    const { ids, index } = branches(conversation, turn);
    put(chooseTurn(conversation, ids[index + step]));
  }
  return html`<span class="branches" role="group" aria-label="Branches">
    <${IconButton} icon="left" label="Branch before" disabled=${busy || place === 0} onClick=${() => show(-1)} />
    <span>${place + 1}/${count}</span>
    <${IconButton} icon="right" label="Next branch" disabled=${busy || place === count - 1} onClick=${() => show(1)} />
  </span>`;
}

/** @param {{text: string}} props */
function CopyButton({ text }) {
  const [done, setDone] = useState(false);
  async function copy() {
    await copyText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  }
  return html`<${IconButton} icon=${done ? "check" : "copy"} label=${done ? "Copied" : "Copy"} onClick=${copy} />`;
}
