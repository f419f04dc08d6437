// Starts the page: theme, stored conversations, server; then everything is in the components.

import { html, render } from "./vendor/htm-preact.js";
import { App } from "./components/app.js";
import { openStored } from "./conversations.js";
import { connect } from "./server.js";
import { get } from "./store.js";
import { showTheme } from "./theme.js";

showTheme(get().settings.theme);
await openStored();
const place = /** @type {HTMLElement} */ (document.getElementById("app"));
place.replaceChildren();
render(html`<${App} />`, place);
await connect();
