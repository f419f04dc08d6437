// Whether the server is there, what it serves, and whether it keeps states.

import { ApiError, listModels, readiness } from "./api.js";
import { hasSessions } from "./sessions.js";
import { get, set } from "./store.js";
import { apiKey } from "./settings.js";

const AGAIN_MS = 1000;

/** Wait until the server is ready, then learn its models. Ends when that is done or a key is needed. */
export async function connect() {
  for (;;) {
    const { ready, phase, progress } = await readiness();
    if (ready) break;
    const known = phase === "unreachable" || phase === "failed" ? phase : "loading";
    set({ phase: known, progress });
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
  try {
    const models = await listModels();
    set({ models, phase: "ready", sessions: await hasSessions(), dialog: get().dialog === "key" ? null : get().dialog });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) askForKey();
    else setTimeout(connect, AGAIN_MS);
  }
}

/** The server wants a key, or another one. */
export function askForKey() {
  set({ phase: "locked", dialog: "key" });
}

/**
 * @param {string} key
 * @param {boolean} remember
 * @returns {Promise<boolean>} whether the server takes it
 */
export async function tryKey(key, remember) {
  apiKey.set(key, remember);
  await connect();
  if (get().phase === "ready") return true;
  apiKey.forget();
  return false;
}
