/** Requests as programs in Python. */
import { withFiles } from "./images.js";
import { literal, PYTHON, string } from "./literals.js";

/** @typedef {import("./index.js").Target} Target */

/**
 * What each library takes by name; all else goes through `extra_body`.
 * @type {Record<"huggingface_hub" | "openai", string[]>}
 */
export const ARGUMENTS = {
  huggingface_hub: [
    "messages", "model", "stream", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
    "response_format", "seed", "stop", "stream_options", "temperature", "tool_choice", "tool_prompt", "tools",
    "top_logprobs", "top_p",
  ],
  openai: [
    "messages", "model", "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n", "parallel_tool_calls", "prediction",
    "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort",
    "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options",
    "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
  ],
};

/** How the program is told a picture. */
const READS_PICTURES = [
  "def image(path, media_type):",
  "    data = base64.b64encode(Path(path).read_bytes()).decode()",
  '    return f"data:{media_type};base64,{data}"',
];

/**
 * @param {Record<string, any>} request
 * @param {Target} target
 * @returns {string}
 */
export function huggingfaceHub(request, target) {
  const format = request.response_format;
  const notes = [];
  let sent = request;
  if (format?.type === "json_schema" && format.json_schema?.schema !== undefined) {
    notes.push('# The library sends the schema as {"type": "json_object", "value": …},', '# without "strict".');
  } else if (format?.type === "json_schema") {
    // The library looks for a schema in `json_schema` alone, and fails without it.
    sent = { ...request, response_format: { type: "json", value: format.value ?? format.schema } };
  }
  const client = [
    "from huggingface_hub import InferenceClient", "",
    "client = InferenceClient(",
    `    base_url=${string(target.baseUrl)},`,
    ...(target.key ? [`    api_key=os.environ["${target.key}"],`] : ["    # Without a key, the library would send your Hugging Face token.", '    api_key="none",']),
    ")",
  ];
  return program(sent, target, "huggingface_hub", client, "client.chat_completion", notes);
}

/**
 * @param {Record<string, any>} request
 * @param {Target} target
 * @returns {string}
 */
export function openaiPython(request, target) {
  const key = target.key ? `os.environ["${target.key}"]` : '"none"';
  const client = ["from openai import OpenAI", "", `client = OpenAI(base_url=${string(target.baseUrl)}, api_key=${key})`];
  return program(request, target, "openai", client, "client.chat.completions.create", []);
}

/**
 * @param {Record<string, any>} given
 * @param {Target} target
 * @param {keyof typeof ARGUMENTS} library
 * @param {string[]} client
 * @param {string} method
 * @param {string[]} notes before the call
 */
function program(given, target, library, client, method, notes) {
  const { request, pictures } = withFiles(given, ({ name, type }) => `image(${string(name)}, ${string(type)})`);
  const imports = [pictures.length && "import base64", target.key && "import os", pictures.length && "from pathlib import Path"].filter(Boolean);
  return [
    ...imports, ...(imports.length ? [""] : []),
    ...client, "",
    ...(pictures.length ? ["", ...READS_PICTURES, "", ""] : []),
    ...notes,
    `${request.stream ? "stream" : "response"} = ${method}(`,
    ...argumentsOf(request, ARGUMENTS[library]),
    ")",
    ...(request.stream ? streamed(request) : whole(request)),
    "",
  ].join("\n");
}

/**
 * @param {Record<string, any>} request
 * @param {string[]} known
 */
function argumentsOf(request, known) {
  const names = Object.keys(request);
  const byName = names.filter((name) => known.includes(name));
  const others = names.filter((name) => !known.includes(name));
  /** @type {(name: string, value: any) => string} */
  const line = (name, value) => `    ${name}=${literal(value, PYTHON, "    ", name.length + 6)},`;
  const lines = byName.map((name) => line(name, request[name]));
  if (others.length) lines.push(line("extra_body", Object.fromEntries(others.map((name) => [name, request[name]]))));
  return lines;
}

/** @param {Record<string, any>} request */
function whole({ n, tools }) {
  const calls = ["for call in message.tool_calls or []:", "    print(call.function.name, call.function.arguments)"];
  if (n > 1) {
    const body = tools ? ["message = choice.message", "print(message.content)", ...calls] : ["print(choice.message.content)"];
    return ["for choice in response.choices:", ...body.map((line) => `    ${line}`)];
  }
  if (!tools) return ["print(response.choices[0].message.content)"];
  return ["message = response.choices[0].message", "print(message.content)", ...calls];
}

/** @param {Record<string, any>} request */
function streamed({ n, tools }) {
  const calls = (/** @type {string} */ key) => [
    "for piece in delta.tool_calls or []:",
    `    call = calls.setdefault(${key}, {"name": "", "arguments": ""})`,
    '    call["name"] += piece.function.name or ""',
    '    call["arguments"] += piece.function.arguments or ""',
  ];
  const showCalls = tools ? ["for call in calls.values():", '    print(call["name"], call["arguments"])'] : [];
  if (n > 1) {
    return [
      "texts = {}", ...(tools ? ["calls = {}"] : []),
      "for chunk in stream:",
      "    for choice in chunk.choices:",
      "        delta = choice.delta",
      '        texts[choice.index] = texts.get(choice.index, "") + (delta.content or "")',
      ...(tools ? calls("(choice.index, piece.index)").map((line) => `        ${line}`) : []),
      "for index, text in sorted(texts.items()):",
      '    print(f"{index}: {text}")',
      ...showCalls,
    ];
  }
  if (!tools) {
    return [
      "for chunk in stream:",
      "    if chunk.choices and chunk.choices[0].delta.content:",
      '        print(chunk.choices[0].delta.content, end="", flush=True)',
      "print()",
    ];
  }
  return [
    "calls = {}",
    "for chunk in stream:",
    "    if not chunk.choices:",
    "        continue",
    "    delta = chunk.choices[0].delta",
    "    if delta.content:",
    '        print(delta.content, end="", flush=True)',
    ...calls("piece.index").map((line) => `    ${line}`),
    "print()",
    ...showCalls,
  ];
}
