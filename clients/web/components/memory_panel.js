// What this chat weighs on the server, over its whole length; and, where the server keeps states, what can be done
// with them.

import { html } from "../vendor/htm-preact.js";
import { cacheBytesPerToken, inBytes, pointsOf } from "../memory.js";
import { currentModel } from "../store.js";
import { Chart } from "./chart.js";
import { Panel } from "./panel.js";
import { StatesSection } from "./states.js";

/** @param {{state: import("../store.js").State, conversation: import("../tree.js").Conversation}} props */
export function MemoryPanel({ state, conversation }) {
  const meta = currentModel()?.meta;
  if (!meta) return html`<${Panel} title="Memory"><p class="hint">This server does not say how large its states are.</p><//>`;
  const points = pointsOf(conversation);
  const tokens = points.at(-1)?.tokens ?? 0;
  const perToken = cacheBytesPerToken(meta);
  const even = Math.ceil(meta.state_bytes / perToken);
  return html`<${Panel} title="Memory">
    <section>
      <dl class="figures">
        <div class="this">
          <dt>This chat</dt>
          <dd>${inBytes(meta.state_bytes)}</dd>
          <dd class="hint">however long it gets</dd>
        </div>
        <div>
          <dt>Tokens seen</dt>
          <dd>${tokens.toLocaleString("en")}</dd>
          <dd class="hint">${points.length} ${points.length === 1 ? "reply" : "replies"}</dd>
        </div>
        <div class="other">
          <dt>A transformer</dt>
          <dd>${inBytes(perToken * tokens)}</dd>
          <dd class="hint">by now, and growing</dd>
        </div>
      </dl>
      <${Chart} points=${points} stateBytes=${meta.state_bytes} perToken=${perToken} />
      <p class="hint">
        The model's whole memory of this chat is one state of fixed size. The other line is the KV cache of a
        transformer of the same depth and width: ${meta.layers} layers × ${meta.width} channels × 2 (keys and values) × 2 bytes
        = ${inBytes(perToken)} a token, without sharing keys between heads (grouped queries divide it by four to eight).
        The two weigh the same at ${even.toLocaleString("en")} tokens;
        at a million it is ${inBytes(meta.state_bytes)} against ${inBytes(perToken * 1e6)}.
      </p>
    </section>
    <${StatesSection} conversation=${conversation} points=${points} state=${state} />
  <//>`;
}
