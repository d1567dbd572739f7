// Run where npm has installed openai, ai and @ai-sdk/openai-compatible: stream, and print what the library has put
// together. `node node_clients.mjs openai|vercel < REQUESTS`; see python_clients.py.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.CLIENTS_DIR + "/package.json");
const load = (name) => import(pathToFileURL(require.resolve(name)));

async function openai(url, body) {
  const { default: OpenAI } = await load("openai");
  const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
  const stream = client.chat.completions.stream({ model: "fake", stream_options: { include_usage: true }, ...body });
  const whole = await stream.finalChatCompletion();
  const { message, logprobs } = whole.choices[0];
  return {
    content: message.content,
    contents: whole.choices.map((choice) => choice.message.content),
    calls: (message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments, call.id]),
    finish: whole.choices.map((choice) => choice.finish_reason),
    tokens: whole.usage.completion_tokens,
    spelt: logprobs?.content?.map((entry) => entry.token).join("") ?? null,
    role: message.role,
    "sent back": message,
  };
}

async function vercel(url, body) {
  const { streamText, tool, jsonSchema } = await load("ai");
  const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
  const provider = createOpenAICompatible({ name: "house", baseURL: url, apiKey: "none", includeUsage: true });
  const { messages, tools = [], max_tokens: maxOutputTokens, stop, seed } = body;
  let failure;
  const result = streamText({
    model: provider("fake"),
    messages,
    seed,
    maxRetries: 0,
    onError: ({ error }) => { failure = error; },
    ...(maxOutputTokens ? { maxOutputTokens } : {}),
    ...(stop ? { stopSequences: [stop] } : {}),
    tools: Object.fromEntries(
      tools.map(({ function: f }) => [f.name, tool({ description: f.description, inputSchema: jsonSchema(f.parameters) })]),
    ),
  });
  await result.consumeStream();
  if (failure) throw failure;
  const calls = await result.toolCalls;
  return {
    content: await result.text,
    reasoning: (await result.reasoningText) ?? null,
    calls: calls.map((call) => [call.toolName, JSON.stringify(call.input), call.toolCallId]),
    finish: [await result.finishReason],
    tokens: (await result.usage).outputTokens,
    role: "assistant",
  };
}

const run = { openai, vercel }[process.argv[2]];
const results = [];
for (const { url, body } of JSON.parse(readFileSync(0, "utf-8"))) {
  try {
    results.push(await run(url, body));
  } catch (error) {
    results.push({ error: error?.message ?? JSON.stringify(error) });
  }
}
console.log(JSON.stringify(results));
