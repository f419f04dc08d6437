// The turns of a conversation, or a welcome where there are none yet. Follows a growing reply while the reader is at
// the end, and stays where the reader has scrolled to.

import { html, useEffect, useLayoutEffect, useRef, useState } from "../vendor/htm-preact.js";
import { send } from "../chat.js";
import { inBytes } from "../memory.js";
import { currentModel } from "../store.js";
import { branches, ROOT, shownTurns } from "../tree.js";
import { Icon, IconButton } from "./icons.js";
import { Message } from "./message.js";

const NEAR_PX = 80;

/** @param {{state: import("../store.js").State, conversation: import("../tree.js").Conversation}} props */
export function Thread({ state, conversation }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const following = useRef(true);
  const place = useRef(0);
  const [away, setAway] = useState(false);
  const turns = shownTurns(conversation);
  const running = !!state.running[conversation.id];

  function toEnd() {
    following.current = true;
    if (box.current) box.current.scrollTop = box.current.scrollHeight;
  }
  function onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = /** @type {HTMLElement} */ (box.current);
    const left = scrollHeight - scrollTop - clientHeight;
    // the smallest step up lets go, else a growing reply would pull the reader down again after each
    if (scrollTop < place.current && left > 1) following.current = false;
    else if (left < NEAR_PX) following.current = true;
    place.current = scrollTop;
    setAway(!following.current);
  }
  useLayoutEffect(() => {
    if (following.current) toEnd();
  });
  useLayoutEffect(toEnd, [turns.length]);
  useEffect(() => {
    const observer = new ResizeObserver(() => following.current && toEnd()); // a phone's keyboard, a turned phone
    observer.observe(/** @type {HTMLElement} */ (box.current));
    return () => observer.disconnect();
  }, []);

  return html`<div class="thread" ref=${box} onScroll=${onScroll}>
    ${turns.length
      ? html`<ol class="turns" aria-label="Messages" aria-busy=${running}>
          ${turns.map((turn, index) => {
            const { ids, index: branch } = branches(conversation, turn);
            const isRunning = running && index === turns.length - 1;
            return html`<${Message}
              key=${turn.id}
              turn=${turn}
              count=${ids.length}
              place=${branch}
              running=${isRunning}
              busy=${running}
              last=${index === turns.length - 1}
            />`;
          })}
        </ol>`
      : html`<${Welcome} state=${state} continued=${!!conversation.turns[ROOT].session} />`}
    ${away &&
    turns.length > 0 &&
    html`<div class="to-end"><${IconButton} icon="down" label="To the end" onClick=${() => (toEnd(), setAway(false))} /></div>`}
  </div>`;
}

const DEMO_IDEAS = ["Hello! My name is Ada.", "What can you do?", "Spell rook."];
const IDEAS = ["Hello! What can you do?", "Write a short poem about rooks.", "Explain recursion with a small Python example."];

/** @param {{state: import("../store.js").State, continued: boolean}} props */
function Welcome({ state, continued }) {
  const model = currentModel();
  return html`<section class="welcome">
    <div class="crest"><${Icon} name="bird" /></div>
    <h2>${state.phase === "ready" ? "What shall we talk about?" : waiting(state)}</h2>
    ${state.phase === "loading" && html`<progress value=${state.progress ?? undefined} aria-label="Loading the model"></progress>`}
    ${continued && html`<p>This chat goes on from a stored state: the model remembers what was said, this page cannot show it.</p>`}
    ${model?.meta &&
    html`<p>
      <b>${model.id}</b> is an RWKV-${model.meta.version} model. It remembers a chat in <b>${inBytes(model.meta.state_bytes)}</b>,
      however long the chat gets.
    </p>`}
    ${model?.meta?.demo && html`<${DemoNotice} />`}
    ${model &&
    html`<ul class="ideas">
      ${(model.meta?.demo ? DEMO_IDEAS : IDEAS).map((idea) => html`<li key=${idea}><button type="button" onClick=${() => send(idea)}>${idea}</button></li>`)}
    </ul>`}
  </section>`;
}

function DemoNotice() {
  return html`<p class="notice">
    This is the small built-in model, here so that everything can be tried at once. It remembers what you tell it and
    does a few small tasks; it knows nothing of the world and makes mistakes. Serve a real model with${" "}
    <code>rookery serve MODEL</code>.
  </p>`;
}

/** @param {import("../store.js").State} state */
function waiting({ phase, progress }) {
  if (phase === "loading") return progress ? `The model is loading: ${Math.round(progress * 100)} %` : "The model is loading …";
  if (phase === "locked") return "This server needs an API key";
  if (phase === "unreachable") return "The server does not answer; trying again …";
  if (phase === "failed") return "The server could not load its model; its log says why";
  return "Connecting …";
}
