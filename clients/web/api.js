// The server's public HTTP API: every request of the page is made here.

import { events } from "./sse.js";
import { apiKey, home } from "./settings.js";

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {ModelMeta} [meta] absent on servers that are not Rookery
 *
 * @typedef {object} ModelMeta
 * @property {string} version
 * @property {number} parameters
 * @property {number} layers
 * @property {number} width
 * @property {number} state_bytes memory of one chat, whatever its length
 * @property {string} dtype
 * @property {boolean} demo
 *
 * @typedef {object} Usage
 * @property {number} prompt_tokens
 * @property {number} completion_tokens
 * @property {number} total_tokens
 * @property {{cached_tokens?: number}} [prompt_tokens_details]
 * @property {{reasoning_tokens?: number}} [completion_tokens_details]
 */

/** What the server refused, or why it could not be asked (`status` 0). */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{message?: string, code?: string | null, param?: string | null}} error the body's `error`
   * @param {number | null} [retryAfter] seconds
   */
  constructor(status, error, retryAfter = null) {
    super(error.message || `the server answered ${status}`);
    this.name = "ApiError";
    this.status = status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.retryAfter = retryAfter;
  }
}

/** The API's address as other programs need it. */
export const baseUrl = new URL("v1", document.baseURI).href;

/**
 * One request; paths are relative to the page, so that it also works under a prefix.
 *
 * @param {string} path
 * @param {{method?: string, json?: any, body?: BodyInit, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 * @throws {ApiError}
 */
export async function request(path, { method, json, body, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  const key = apiKey.get();
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (path.startsWith("v1/sessions") || json?.session_id) headers["x-session-id"] = home();
  if (json !== undefined) headers["Content-Type"] = "application/json";
  else if (body !== undefined) headers["Content-Type"] = "application/octet-stream";
  const content = json === undefined ? body : JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, { method: method ?? (content ? "POST" : "GET"), headers, body: content, signal });
  } catch (error) {
    throw signal?.aborted ? error : new ApiError(0, { message: "The server does not answer. Is it still running?" });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** @param {Response} response */
async function failure(response) {
  const text = await response.text();
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause;
    error = { message: `The server answered ${response.status}: ${text.slice(0, 200)}` };
  }
  const wait = Number(response.headers.get("Retry-After"));
  return new ApiError(response.status, error, wait || null);
}

/** @returns {Promise<Model[]>} */
export async function listModels() {
  return (await (await request("v1/models")).json()).data;
}

/**
 * Whether the server answers requests, and how far it has come with its model.
 *
 * @returns {Promise<{ready: boolean, phase: string, progress: number | null}>}
 */
export async function readiness() {
  let response;
  try {
    response = await fetch("ready");
  } catch {
    return { ready: false, phase: "unreachable", progress: null };
  }
  const body = await response.json();
  return { ready: response.ok, phase: body.phase, progress: body.progress };
}

/**
 * The chunks of a streamed chat completion.
 *
 * @param {object} body of POST /v1/chat/completions, without `stream`
 * @param {AbortSignal} signal aborting it also stops the server's work
 * @returns {AsyncGenerator<any>}
 * @throws {ApiError} also in the middle of the stream
 */
export async function* streamChat(body, signal) {
  const json = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", { json, signal });
  const broken = new ApiError(0, { message: "The connection broke before the reply was complete." });
  if (!response.body) throw broken;
  let complete = false;
  try {
    for await (const data of events(response.body)) {
      complete = data === "[DONE]";
      if (complete) continue; // to the end of the body: leaving early would look like a break
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(response.status, chunk.error);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof TypeError ? broken : error; // what fetch calls a network error
  }
  if (!complete) throw broken;
}
