// Markdown to safe DOM. The text comes from a model and may be hostile: raw HTML is shown as text, images become
// links, the result passes DOMPurify with a short list of what may be there, and sizes are bounded beforehand.

import DOMPurify from "./vendor/dompurify.js";
import { Marked, Renderer } from "./vendor/marked.js";

const MAX_CHARS = 200_000;
const MAX_TABLE_CELLS = 20_000;
const MAX_MARKS = 20_000;
const MARKS = /[*_~`[\]]/g;
const TANGLED = /[[\]*_~`!<]{400}/; // marks without words
const DEEP = /^(?:[ \t]{150}|(?:[ \t]*(?:>|[-*+][ \t]|\d{1,9}[.)][ \t])){40})/m; // nested lists and quotes

/**
 * Whether the parser, which takes quadratic time on some texts, would hold up the page.
 *
 * @param {string} text
 */
function costly(text) {
  if (text.length > MAX_CHARS || DEEP.test(text) || TANGLED.test(text)) return true;
  return text.length > MAX_MARKS && (text.match(MARKS)?.length ?? 0) > MAX_MARKS;
}

/** @param {string} text */
function escape(text) {
  return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

/** @typedef {{type: string, raw: string, text: string, href: string, lang?: string, checked: boolean}} Token */

const marked = new Marked({ gfm: true });
marked.use({
  renderer: {
    html(/** @type {Token} */ { text }) {
      return /^<br ?\/?>$/i.test(text) ? "<br>" : escape(text);
    },
    image(/** @type {Token} */ { href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
    checkbox(/** @type {Token} */ { checked }) {
      return checked ? "☑ " : "☐ ";
    },
    code(/** @type {Token} */ { text, lang }) {
      const name = escape((lang ?? "").split(/\s/)[0].slice(0, 40));
      const bar = `<div class="code-bar"><span>${name}</span><button class="copy-code">Copy</button></div>`;
      return `<div class="code">${bar}<pre tabindex="0"><code>${escape(text)}</code></pre></div>`;
    },
    table(/** @type {Token} */ token) {
      return `<div class="table" tabindex="0">${Renderer.prototype.table.call(this, token)}</div>`;
    },
  },
  tokenizer: {
    table(/** @type {string} */ source) {
      // a short row is filled up to the header's width: a small text can ask for a huge table
      const lines = source.slice(0, source.search(/\n[ \t]*\n|$(?![^])/)).split("\n");
      return lines.length * lines[0].split("|").length > MAX_TABLE_CELLS ? undefined : false;
    },
  },
});

const ALLOWED = {
  ALLOWED_TAGS: (
    "a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre span strong table tbody td th thead tr ul"
  ).split(" "),
  ALLOWED_ATTR: ["align", "class", "href", "start", "tabindex", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["align", "start", "tabindex"], // whatever is not said to be safe must look like an address
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
DOMPurify.addHook("afterSanitizeAttributes", (/** @type {Element} */ element) => {
  if (element.tagName !== "A" || !element.hasAttribute("href")) return;
  element.setAttribute("target", "_blank");
  element.setAttribute("rel", "noopener noreferrer nofollow");
});

/**
 * @typedef {object} Block a paragraph, list, table, code block …
 * @property {string} source equal sources give equal blocks
 * @property {Token | null} token null: shown as it is
 */

/**
 * Cut a text into its blocks, so that while it grows only the last one is rendered again.
 *
 * @param {string} text
 * @returns {Block[]}
 */
export function blocksOf(text) {
  const plain = [{ source: text, token: null }];
  if (costly(text)) return plain;
  try {
    const tokens = /** @type {Token[]} */ (marked.lexer(text));
    return tokens.filter(({ type }) => type !== "space").map((token) => ({ source: token.raw, token }));
  } catch (error) {
    if (error instanceof RangeError) return plain; // nested too deep in a way not foreseen
    throw error;
  }
}

/**
 * @param {Block} block
 * @returns {DocumentFragment | HTMLElement}
 */
export function domOf({ source, token }) {
  if (token) return DOMPurify.sanitize(marked.parser([token]), ALLOWED);
  const plain = document.createElement("div");
  plain.className = "plain";
  plain.textContent = source;
  return plain;
}
