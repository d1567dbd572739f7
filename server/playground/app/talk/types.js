/**
 * What a conversation is made of, in the words of the other modules.
 *
 * @typedef {"system" | "user" | "assistant" | "tool"} Role
 *
 * @typedef {object} Call a function that the model wants called
 * @property {string} id
 * @property {string} name
 * @property {string} arguments JSON text, perhaps unfinished
 *
 * @typedef {object} Token a token of an answer, as `logprobs.content` has it
 * @property {string} token
 * @property {number} logprob
 * @property {number[] | null} bytes
 * @property {{token: string, logprob: number, bytes: number[] | null}[]} top_logprobs
 *
 * @typedef {object} Outcome how an answer came about
 * @property {string} model
 * @property {string | null} [finish] `stop`, `length` or `tool_calls`
 * @property {number} [promptTokens]
 * @property {number} [cachedTokens]
 * @property {number} [tokens] of the answer, or of what was added to it where it was continued
 * @property {number | null} [before] tokens that an answer had before it was continued, null where nobody counted them
 * @property {number} [firstMs] until the first token
 * @property {number} [ms] until the end
 * @property {string} [requestId]
 * @property {string} [unused] fields that the model made no use of
 * @property {string} [relaxed] what a format was not held to
 * @property {{message: string, param: string | null, code: string | null, requestId: string, status: number}} [error]
 *
 * @typedef {object} Message one message, and its place in the tree
 * @property {string} id
 * @property {string} talk the conversation's id
 * @property {string | null} parent null at the root
 * @property {number} order among those of one parent: when it was made, in ms
 * @property {Role} role
 * @property {string} content
 * @property {string[]} [images] data URLs, shown before the text
 * @property {string} [reasoning]
 * @property {Call[]} [calls]
 * @property {string} [callId] of a tool's result: the call that it answers
 * @property {string} [name] of a tool's result: the function
 * @property {"done" | "writing" | "stopped" | "failed"} state
 * @property {Outcome} [outcome]
 * @property {Token[]} [tokens]
 *
 * @typedef {"text" | "json_object" | "json_schema" | "regex" | "choice" | "grammar"} FormatKind
 *
 * @typedef {object} Settings what is asked for beside the messages
 * @property {string | null} model null for the server's first
 * @property {Record<string, unknown>} params only what the person set
 * @property {{kind: FormatKind, text: string, strict: boolean}} format
 * @property {string} tools JSON text of the definitions; empty for none
 *
 * @typedef {object} Draft what stands in the composer
 * @property {string} text
 * @property {string[]} images
 *
 * @typedef {object} TalkRecord a conversation without its messages
 * @property {string} id
 * @property {string} title empty until there is one
 * @property {number} created ms since 1970
 * @property {number} updated
 * @property {Settings} settings
 * @property {Record<string, string>} chosen by parent (`""` at the root), which of its children is on the path
 * @property {Draft} draft
 * @property {string[]} columns ids of the conversations that are compared with this one
 * @property {string | null} owner the conversation whose column this is
 */

/** Settings that ask for nothing. */
export function noSettings() {
  return /** @type {Settings} */ ({ model: null, params: {}, format: { kind: "text", text: "", strict: true }, tools: "" });
}
