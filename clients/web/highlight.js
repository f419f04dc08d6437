// Colours in code: highlight.js and the grammars of common languages, each loaded when there is the first code of it.

import DOMPurify from "./vendor/dompurify.js";

const MAX_CHARS = 30_000;
/** The grammar for each name that models give a language. */
const GRAMMARS = /** @type {Record<string, string>} */ ({
  bash: "bash", c: "c", "c++": "cpp", cpp: "cpp", css: "css", diff: "diff", go: "go", golang: "go", h: "c", hpp: "cpp",
  html: "xml", java: "java", javascript: "javascript", js: "javascript", json: "json", jsx: "javascript", py: "python",
  python: "python", python3: "python", rs: "rust", rust: "rust", sh: "bash", shell: "bash", sql: "sql", svg: "xml",
  ts: "typescript", tsx: "typescript", typescript: "typescript", xml: "xml", yaml: "yaml", yml: "yaml", zsh: "bash",
}); // prettier-ignore
const COLOURED = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };

/**
 * Colour an element's text, if its language is known. Text, and what is copied, stay what they were.
 *
 * @param {HTMLElement} code
 * @param {string} language as the model names it
 */
export async function colour(code, language) {
  const text = code.textContent ?? "";
  const name = GRAMMARS[language.toLowerCase()];
  if (!name || text.length > MAX_CHARS) return;
  const { default: hljs } = await import("./vendor/highlight/core.js");
  if (!hljs.getLanguage(name)) {
    hljs.registerLanguage(name, (await import(`./vendor/highlight/${name}.js`)).default);
  }
  const { value } = hljs.highlight(text, { language: name, ignoreIllegals: true });
  if (code.isConnected) code.replaceChildren(DOMPurify.sanitize(value, COLOURED));
}
