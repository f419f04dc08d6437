// Programs that talk to this server, ready to be copied.

/**
 * @param {{baseUrl: string, model: string, needsKey: boolean}} server
 * @returns {Record<string, string>} by language
 */
export function snippets({ baseUrl, model, needsKey }) {
  const name = JSON.stringify(model);
  const header = needsKey ? ` \\\n  -H "Authorization: Bearer $OPENAI_API_KEY"` : "";
  const body = `{
    "model": ${name},
    "messages": [{"role": "user", "content": "Hello!"}],
    "stream": true
  }`;
  const pythonKey = needsKey ? `os.environ["OPENAI_API_KEY"]` : `"none"`;
  const nodeKey = needsKey ? `process.env.OPENAI_API_KEY` : `"none"`;
  return {
    curl: `curl -N ${baseUrl}/chat/completions \\
  -H "Content-Type: application/json"${header} \\
  -d '${body.replaceAll("'", "'\\''")}'`,
    Python: `# pip install openai
${needsKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key=${pythonKey})
stream = client.chat.completions.create(
    model=${name},
    messages=[{"role": "user", "content": "Hello!"}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)`,
    Node: `// npm install openai
import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${JSON.stringify(baseUrl)}, apiKey: ${nodeKey} });
const stream = await client.chat.completions.create({
  model: ${name},
  messages: [{ role: "user", content: "Hello!" }],
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");`,
  };
}
