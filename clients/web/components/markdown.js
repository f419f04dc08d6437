// A text as formatted blocks. A block is rendered again only when its own source has changed.

import { html, useEffect, useLayoutEffect, useRef } from "../vendor/htm-preact.js";
import { blocksOf, domOf } from "../markdown.js";
import { copyText } from "../clipboard.js";
import { colour } from "../highlight.js";

const SETTLED_MS = 150; // a block of code that grows is coloured when it is done

/** @param {{text: string}} props */
export function Markdown({ text }) {
  const blocks = blocksOf(text);
  return html`<div class="markdown" onClick=${copyCode}>
    ${blocks.map((block, index) => html`<${BlockView} key=${index} block=${block} />`)}
  </div>`;
}

/** @param {{block: import("../markdown.js").Block}} props */
function BlockView({ block }) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => place.current?.replaceChildren(domOf(block)), [block.source, block.token?.type]);
  useEffect(() => {
    const code = /** @type {HTMLElement | null | undefined} */ (place.current?.querySelector(".code code"));
    if (!code) return undefined;
    const language = code.closest(".code")?.querySelector(".code-bar span")?.textContent ?? "";
    const timer = setTimeout(() => void colour(code, language), SETTLED_MS);
    return () => clearTimeout(timer);
  }, [block.source, block.token?.type]);
  return html`<div class="block" ref=${place}></div>`;
}

/** @param {MouseEvent} event */
async function copyCode(event) {
  const button = event.target instanceof Element ? event.target.closest("button.copy-code") : null;
  const code = button?.closest(".code")?.querySelector("code");
  if (!button || !code) return;
  await copyText(code.textContent ?? "");
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
