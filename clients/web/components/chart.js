// Memory against tokens seen: the state's flat line, the KV cache's rising one, a dot for each reply of the chat.

import { html } from "../vendor/htm-preact.js";
import { inBytes } from "../memory.js";

const WIDTH = 320;
const HEIGHT = 170;
const LEFT = 46;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 26;

/** @param {{points: import("../memory.js").Point[], stateBytes: number, perToken: number}} props */
export function Chart({ points, stateBytes, perToken }) {
  const last = points.at(-1)?.tokens ?? 0;
  const maxTokens = niceAbove(Math.max(last, (2 * stateBytes) / perToken));
  const maxBytes = niceAbove(Math.max(perToken * maxTokens, stateBytes));
  const x = (/** @type {number} */ tokens) => LEFT + (tokens / maxTokens) * (WIDTH - LEFT - RIGHT);
  const y = (/** @type {number} */ bytes) => HEIGHT - BOTTOM - (bytes / maxBytes) * (HEIGHT - TOP - BOTTOM);
  const summary =
    `Memory over the chat: the state stays at ${inBytes(stateBytes)}; ` +
    `a KV cache would have grown to ${inBytes(perToken * last)} at ${last} tokens.`;
  return html`<figure class="chart">
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${summary}>
      ${[0, 0.5, 1].map(
        (part) => html`<g key=${part}>
          <line class="grid" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${y(part * maxBytes)} y2=${y(part * maxBytes)} />
          <text x=${LEFT - 6} y=${y(part * maxBytes) + 3.5} text-anchor="end">${inBytes(part * maxBytes)}</text>
          <text x=${x(part * maxTokens)} y=${HEIGHT - 8} text-anchor=${["start", "middle", "end"][part * 2]}>
            ${(part * maxTokens).toLocaleString("en")}${part === 1 ? " tokens" : ""}
          </text>
        </g>`,
      )}
      <line class="ahead cache" x1=${x(last)} y1=${y(perToken * last)} x2=${x(maxTokens)} y2=${y(perToken * maxTokens)} />
      <line class="ahead state" x1=${x(last)} y1=${y(stateBytes)} x2=${x(maxTokens)} y2=${y(stateBytes)} />
      <line class="cache" x1=${x(0)} y1=${y(0)} x2=${x(last)} y2=${y(perToken * last)} />
      <line class="state" x1=${x(0)} y1=${y(stateBytes)} x2=${x(last)} y2=${y(stateBytes)} />
      ${points.map(
        ({ turnId, number, tokens }) => html`<g key=${turnId}>
          <circle class="cache" cx=${x(tokens)} cy=${y(perToken * tokens)} r="2.6">
            <title>After reply ${number}: a KV cache of ${tokens} tokens, ${inBytes(perToken * tokens)}</title>
          </circle>
          <circle class="state" cx=${x(tokens)} cy=${y(stateBytes)} r="2.6">
            <title>After reply ${number}: ${tokens} tokens seen, ${inBytes(stateBytes)}</title>
          </circle>
        </g>`,
      )}
    </svg>
    <figcaption><span class="key state">this chat</span><span class="key cache">transformer's KV cache</span></figcaption>
  </figure>`;
}

/**
 * The next of 1, 2, 4, 6, 8 × 10ⁿ, so that the middle of an axis is a plain number too.
 *
 * @param {number} value
 */
function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return ([1, 2, 4, 6, 8].find((digit) => digit * power >= value) ?? 10) * power;
}
