// What the page remembers besides conversations: sampling, looks, the API key. All of it stays in this browser.

import { newId } from "./tree.js";

/**
 * @typedef {object} SamplingField
 * @property {string} name of the request field
 * @property {string} label
 * @property {string} hint
 * @property {number} min
 * @property {number} max
 * @property {number} step
 * @property {number | null} standard what the server does when the field is not sent; null where it has no number
 */

/** @type {SamplingField[]} */
export const SAMPLING = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", min: 0, max: 2, step: 0.05, standard: 1 },
  { name: "top_p", label: "Top p", hint: "Keep the likeliest tokens up to this share", min: 0, max: 1, step: 0.01, standard: 1 },
  { name: "top_k", label: "Top k", hint: "Keep so many of the likeliest tokens; 0 keeps all", min: 0, max: 200, step: 1, standard: 0 },
  { name: "presence_penalty", label: "Presence penalty", hint: "Against tokens already used", min: -2, max: 2, step: 0.05, standard: 0 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "The more often a token was used, the more", min: -2, max: 2, step: 0.05, standard: 0 },
  { name: "max_tokens", label: "Longest reply", hint: "In tokens", min: 1, max: 32768, step: 1, standard: null },
  { name: "seed", label: "Seed", hint: "The same seed draws the same reply", min: 0, max: 2 ** 31, step: 1, standard: null },
];

/** @type {string[]} */
export const EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh"];

/**
 * @typedef {object} Settings
 * @property {Record<string, number>} sampling only what differs from the server's defaults
 * @property {string} effort reasoning effort; "" leaves it to the server
 * @property {"auto" | "light" | "dark"} theme
 * @property {string} model chosen in the picker
 */

const PLACE = "rookery.settings";

/** @returns {Settings} */
export function readSettings() {
  /** @type {Settings} */
  const settings = { sampling: {}, effort: "", theme: "auto", model: "" };
  const stored = parse(localStorage.getItem(PLACE) ?? "{}");
  for (const field of SAMPLING) {
    const value = stored.sampling?.[field.name];
    if (typeof value === "number" && value >= field.min && value <= field.max) settings.sampling[field.name] = value;
  }
  if (EFFORTS.includes(stored.effort)) settings.effort = stored.effort;
  if (["light", "dark"].includes(stored.theme)) settings.theme = stored.theme;
  if (typeof stored.model === "string") settings.model = stored.model;
  return settings;
}

/** @param {Settings} settings */
export function writeSettings(settings) {
  localStorage.setItem(PLACE, JSON.stringify(settings));
}

/** @param {string} text */
function parse(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {}; // not ours, or cut short: start from the defaults
  }
}

/**
 * The fields a chat request gets from the settings.
 *
 * @param {Settings} settings
 * @returns {Record<string, unknown>}
 */
export function requestFields(settings) {
  return { ...settings.sampling, ...(settings.effort ? { reasoning_effort: settings.effort } : {}) };
}

const KEY_PLACE = "rookery.key";

/** The API key: kept for this tab, or on this device when the user says so. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY_PLACE) ?? localStorage.getItem(KEY_PLACE) ?? "",
  /**
   * @param {string} key
   * @param {boolean} remember
   */
  set(key, remember) {
    sessionStorage.setItem(KEY_PLACE, key);
    if (remember) localStorage.setItem(KEY_PLACE, key);
    else localStorage.removeItem(KEY_PLACE);
  },
  forget() {
    sessionStorage.removeItem(KEY_PLACE);
    localStorage.removeItem(KEY_PLACE);
  },
};

const HOME_PLACE = "rookery.home";

/** What a proxy before several servers knows this browser by: everything about its states goes to one of them. */
export function home() {
  const known = localStorage.getItem(HOME_PLACE) ?? newId();
  localStorage.setItem(HOME_PLACE, known);
  return known;
}
