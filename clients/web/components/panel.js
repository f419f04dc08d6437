// The frame of the panels on the right.

import { html, useEffect, useRef } from "../vendor/htm-preact.js";
import { set } from "../store.js";
import { IconButton } from "./icons.js";

/** @param {{title: string, children: unknown}} props */
export function Panel({ title, children }) {
  const heading = useRef(/** @type {HTMLElement | null} */ (null));
  const opener = useRef(document.activeElement); // of the first render: later the focus may have left a covered chat
  useEffect(() => {
    heading.current?.focus();
    return () => opener.current instanceof HTMLElement && opener.current.isConnected && opener.current.focus();
  }, []);
  /** @param {KeyboardEvent} event */
  function onKey(event) {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    set({ panel: null });
  }
  return html`<aside class="panel" aria-label=${title} onKeyDown=${onKey}>
    <div class="panel-head">
      <h2 tabindex="-1" ref=${heading}>${title}</h2>
      <${IconButton} icon="close" label=${`Close ${title.toLowerCase()}`} onClick=${() => set({ panel: null })} />
    </div>
    ${children}
  </aside>`;
}
