/** The pieces of a streamed answer, laid end to end. Pure but for what it is given to fill. */

/**
 * One answer while it comes.
 * @typedef {object} Assembled
 * @property {string} content
 * @property {string} reasoning
 * @property {import("./types.js").Call[]} calls
 * @property {import("./types.js").Token[]} tokens
 * @property {string | null} finish
 */

/** @returns {Assembled} */
export const nothing = () => ({ content: "", reasoning: "", calls: [], tokens: [], finish: null });

/**
 * Add one choice of a chunk.
 * @param {Assembled} answer
 * @param {any} choice
 */
export function addPiece(answer, choice) {
  const delta = choice.delta ?? {};
  if (delta.content) answer.content += delta.content;
  const thought = delta.reasoning ?? delta.reasoning_content;
  if (thought) answer.reasoning += thought;
  for (const piece of delta.tool_calls ?? []) {
    const call = (answer.calls[piece.index] ??= { id: "", name: "", arguments: "" });
    call.id += piece.id ?? "";
    call.name += piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
  }
  if (choice.logprobs?.content) answer.tokens.push(...choice.logprobs.content);
  if (choice.finish_reason) answer.finish = choice.finish_reason;
}
