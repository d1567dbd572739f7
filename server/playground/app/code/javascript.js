/** Requests as programs in JavaScript, for Node. */
import { withFiles } from "./images.js";
import { JAVASCRIPT, literal, string } from "./literals.js";

/** @typedef {import("./index.js").Target} Target */

const READS_PICTURES = "const image = (path, type) => `data:${type};base64,${readFileSync(path, \"base64\")}`;";

/**
 * @param {Record<string, any>} request
 * @param {Target} target
 * @returns {string}
 */
export function huggingfaceInference(request, target) {
  const key = target.key ? `process.env.${target.key}` : '"none"';
  const client = `const client = new InferenceClient(${key}, { endpointUrl: ${string(target.baseUrl)} });`;
  const { stream, ...body } = request; // which method is called says whether it streams
  const call = stream ? "client.chatCompletionStream" : "await client.chatCompletion";
  return program(body, Boolean(stream), 'import { InferenceClient } from "@huggingface/inference";', client, call);
}

/**
 * @param {Record<string, any>} request
 * @param {Target} target
 * @returns {string}
 */
export function openaiNode(request, target) {
  const key = target.key ? `process.env.${target.key}` : '"none"';
  const client = `const client = new OpenAI({ baseURL: ${string(target.baseUrl)}, apiKey: ${key} });`;
  return program(request, request.stream === true, 'import OpenAI from "openai";', client, "await client.chat.completions.create");
}

/**
 * @param {Record<string, any>} given
 * @param {boolean} streams
 * @param {string} library its import
 * @param {string} client
 * @param {string} call
 */
function program(given, streams, library, client, call) {
  const { request, pictures } = withFiles(given, ({ name, type }) => `image(${string(name)}, ${string(type)})`);
  return [
    ...(pictures.length ? ['import { readFileSync } from "node:fs";'] : []),
    library, "",
    client,
    ...(pictures.length ? [READS_PICTURES] : []), "",
    `const ${streams ? "stream" : "response"} = ${call}(${literal(request, JAVASCRIPT, "", Infinity)});`,
    ...(streams ? streamed(request) : whole(request)),
    "",
  ].join("\n");
}

/** @param {Record<string, any>} request */
function whole({ n, tools }) {
  const calls = "for (const call of message.tool_calls ?? []) console.log(call.function.name, call.function.arguments);";
  if (n > 1) {
    const lines = ["console.log(message.content);", ...(tools ? [calls] : [])];
    return ["for (const { message } of response.choices) {", ...lines.map((line) => `  ${line}`), "}"];
  }
  if (!tools) return ["console.log(response.choices[0].message.content);"];
  return ["const { message } = response.choices[0];", "console.log(message.content);", calls];
}

/** @param {Record<string, any>} request */
function streamed({ n, tools }) {
  const calls = (/** @type {string} */ key, /** @type {string} */ from) => [
    `for (const piece of ${from}.tool_calls ?? []) {`,
    `  const call = (calls[${key}] ??= { name: "", arguments: "" });`,
    '  call.name += piece.function?.name ?? "";',
    '  call.arguments += piece.function?.arguments ?? "";',
    "}",
  ];
  const begin = tools ? ["const calls = {};"] : [];
  const showCalls = tools ? ["for (const call of Object.values(calls)) console.log(call.name, call.arguments);"] : [];
  if (n > 1) {
    return [
      "const texts = [];", ...begin,
      "for await (const chunk of stream) {",
      "  for (const { index, delta } of chunk.choices) {",
      '    texts[index] = (texts[index] ?? "") + (delta.content ?? "");',
      ...(tools ? calls("`${index} ${piece.index}`", "delta").map((line) => `    ${line}`) : []),
      "  }",
      "}",
      "texts.forEach((text, index) => console.log(`${index}: ${text}`));",
      ...showCalls,
    ];
  }
  if (!tools) {
    return [
      "for await (const chunk of stream) {",
      '  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");',
      "}",
      "console.log();",
    ];
  }
  return [
    ...begin,
    "for await (const chunk of stream) {",
    "  const delta = chunk.choices[0]?.delta ?? {};",
    '  process.stdout.write(delta.content ?? "");',
    ...calls("piece.index", "delta").map((line) => `  ${line}`),
    "}",
    "console.log();",
    ...showCalls,
  ];
}
