// Where messages are written.

import { html, useEffect, useLayoutEffect, useRef, useState } from "../vendor/htm-preact.js";
import { send, stop } from "../chat.js";
import { isComposing } from "../shortcuts.js";
import { currentModel, set } from "../store.js";
import { Icon } from "./icons.js";

/** @param {{state: import("../store.js").State, conversation: import("../tree.js").Conversation}} props */
export function Composer({ state, conversation }) {
  const [text, setText] = useState("");
  const box = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const running = !!state.running[conversation.id];
  const ready = state.phase === "ready";

  useEffect(() => {
    const onPhone = !matchMedia("(min-width: 760px)").matches; // there the keyboard would cover the chat
    const typing = document.activeElement?.closest("input, textarea, select, dialog");
    if (!onPhone && !typing) box.current?.focus();
  }, [conversation.id, ready]);
  useLayoutEffect(() => {
    const area = /** @type {HTMLTextAreaElement} */ (box.current);
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
  }, [text]);

  function submit() {
    if (running || !ready || !text.trim()) return;
    send(text);
    setText("");
  }
  /** @param {KeyboardEvent} event */
  function onKey(event) {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      submit();
    } else if (event.key === "ArrowUp" && !text) {
      const edits = /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".turn .edit"));
      if (edits.length) event.preventDefault();
      edits[edits.length - 1]?.click();
    }
  }
  return html`<form class="composer" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), submit())}>
    <div class="composer-box">
      <textarea
        id="composer"
        ref=${box}
        rows="1"
        aria-label="Message"
        placeholder=${ready ? `Write to ${currentModel()?.id ?? "the model"}` : "Waiting for the server"}
        value=${text}
        onInput=${(/** @type {any} */ event) => setText(event.target.value)}
        onKeyDown=${onKey}
      ></textarea>
      ${running
        ? html`<button type="button" class="round stop" aria-label="Stop" title="Stop (Esc)" onClick=${() => stop(conversation.id)}>
            <${Icon} name="stop" />
          </button>`
        : html`<button type="submit" class="round" aria-label="Send" title="Send (Enter)" disabled=${!ready || !text.trim()}>
            <${Icon} name="send" />
          </button>`}
    </div>
    ${state.phase === "locked"
      ? html`<p class="small-print"><button type="button" onClick=${() => set({ dialog: "key" })}>Enter the API key</button></p>`
      : html`<p class="small-print">
          Models make mistakes. This page talks to ${location.host} only; chats are kept in this browser.
        </p>`}
  </form>`;
}
