// The `openai` package of Node: chat, streams, structured output, tools, embeddings, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.env.ROOKERY_URL}/v1`, apiKey: "none", maxRetries: 0 });
const model = "tiny";
const messages = [{ role: "user", content: "Hello" }];

const models = [];
for await (const one of client.models.list()) models.push(one.id);
assert.deepEqual(models, [model]);

const whole = await client.chat.completions.create({ model, messages, max_tokens: 30, seed: 1 });
assert.equal(whole.choices[0].finish_reason, "length");
assert.equal(whole.usage.completion_tokens, 30);

const stream = client.chat.completions.stream({
  model, messages, max_tokens: 30, seed: 1, stream_options: { include_usage: true },
});
let text = "";
stream.on("content", (delta) => { text += delta; });
const final = await stream.finalChatCompletion();
assert.equal(text, whole.choices[0].message.content);
assert.equal(final.usage.completion_tokens, 30);

const Weather = z.object({ city: z.enum(["Bern", "Genf"]), rain: z.boolean() });
const parsed = await client.chat.completions.parse({
  model, messages, max_tokens: 200, seed: 1, response_format: zodResponseFormat(Weather, "weather"),
});
assert.ok(Weather.safeParse(parsed.choices[0].message.parsed).success);

let reported;
const runner = client.chat.completions.runTools({
  model, messages, max_tokens: 200, seed: 1, tool_choice: { type: "function", function: { name: "report" } },
  parallel_tool_calls: false,
  tools: [zodFunction({ name: "report", parameters: Weather, function: (given) => { reported = given; return "noted"; } })],
});
await runner.done();
assert.ok(Weather.safeParse(reported).success);

const response = await client.responses.create({ model, input: "Hello", max_output_tokens: 20 });
assert.equal(response.status, "incomplete");
assert.equal(response.usage.output_tokens, 20);
const next = client.responses.stream({
  model, input: "And now?", previous_response_id: response.id, max_output_tokens: 20,
});
let said = "";
next.on("response.output_text.delta", (event) => { said += event.delta; });
assert.equal((await next.finalResponse()).output_text, said);
const shaped = await client.responses.parse({
  model, input: "Weather?", max_output_tokens: 200, text: { format: zodTextFormat(Weather, "weather") },
});
assert.ok(Weather.safeParse(shaped.output_parsed).success);
assert.equal((await client.responses.retrieve(response.id)).id, response.id);
await client.responses.delete(response.id);
await assert.rejects(client.responses.retrieve(response.id), OpenAI.NotFoundError);

const early = await client.completions.create({ model, prompt: "Once", max_tokens: 30000, stream: true });
let events = 0;
for await (const chunk of early) {
  assert.equal(chunk.object, "text_completion");
  if (++events === 3) break;
}
assert.equal(events, 3);

const vectors = await client.embeddings.create({ model, input: ["a", "b", "a"] });
assert.equal(vectors.data.length, 3);
assert.equal(vectors.data[0].embedding.length, 64);
assert.ok(Math.abs(vectors.data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4);

await assert.rejects(
  client.chat.completions.create({ model, messages, temperature: 9 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
);
await assert.rejects(
  client.chat.completions.create({ model: "nope", messages }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
);
