"""The tables of every field of a request, from which the documentation is generated."""

from dataclasses import dataclass
from typing import Literal

from engine.scheduling.admission import MAX_PRIORITY
from server.protocol.completion_request import DEFAULT_MAX_TOKENS
from server.protocol.generation_request import MAX_N, MAX_STOP_CHARS, MAX_STOP_STRINGS, MAX_TIMEOUT
from server.protocol.hints import MAX_LABEL_CHARS
from server.protocol.messages import MAX_PARTS
from server.protocol.prompts import MAX_MESSAGES, MAX_PROMPTS
from server.protocol.structured_outputs import MAX_CHOICES, MAX_GRAMMAR_CHARS
from server.protocol.tools import MAX_TOOLS

Status = Literal["supported", "hint", "partly", "refused"]


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One field: what it means, what it may hold, and whether this server does it.

    `refused`: every use that asks for something is a 400 that names the field. `partly`: some uses are, as `range`
    says. `hint`: taken, and no answer depends on it.
    """

    name: str
    meaning: str
    range: str
    status: Status = "supported"
    default: bool | int | float | str | None = None
    """What holds when the field is absent, where that is one value for all requests and models.

    models.yaml may say otherwise of a model, which /v1/models tells as `sampling_defaults`.
    """


def field_table() -> list[FieldRow]:
    """A row for each field of `ChatCompletionRequest`, in its order."""
    return [*_CONVERSATION, *_SHARED, *_TOOLS, *_CONSTRAINTS, *_REFUSED, *_HINTS, *_CHAT]


def completion_field_table() -> list[FieldRow]:
    """A row for each field of `CompletionRequest`, in its order."""
    shared = [_MAX_TOKENS_OF_COMPLETIONS if row.name == "max_tokens" else row for row in _SHARED]
    return [*_RAW_PROMPTS, *shared, *_CONSTRAINTS, *_COMPLETION]


_CONVERSATION = (
    FieldRow(
        "messages",
        "The conversation. Text parts are joined by line breaks. `name`, `tool_calls`, `tool` turns and reasoning go "
        "to the model's chat template; a turn that the template cannot show is refused. What clients send back beside "
        "them in an assistant's turn, and `cache_control`, are taken. Parts are `text` (also `input_text` and "
        "`output_text`), `image_url`, and in an assistant's turn `refusal`, and `thinking` and `reasoning`, which "
        "are its reasoning",
        f"1 to {MAX_MESSAGES} messages of at most {MAX_PARTS} parts; image_url parts need a model that takes images",
    ),
    FieldRow(
        "add_generation_prompt", "Open an assistant turn after the messages. Default true", "boolean", default=True
    ),
    FieldRow(
        "continue_final_message",
        "Continue the last message, of the assistant, in place of answering",
        "boolean",
        default=False,
    ),
    FieldRow(
        "chat_template_kwargs",
        "Variables for the model's chat template",
        "object; a variable the template does not read is refused, but for switches of reasoning",
    ),
)
_RAW_PROMPTS = (
    FieldRow(
        "prompt",
        "What is continued. Control tokens that are written out in text are matched as the model's own",
        f"a string, an array of strings, an array of token ids, or an array of such arrays; at most {MAX_PROMPTS}",
    ),
    FieldRow(
        "add_special_tokens",
        "Let the tokenizer add what its model expects around a text, as `<s>` before it. Default true; token ids are "
        "taken as they are",
        "boolean",
    ),
)
_MAX_TOKENS_OF_COMPLETIONS = FieldRow(
    "max_tokens",
    f"Most tokens to generate. Default {DEFAULT_MAX_TOKENS}, or less where the context leaves less",
    "0 to the context; 0 needs echo",
)
_SHARED = (
    FieldRow("model", "The model to use", "a name from /v1/models"),
    FieldRow("max_tokens", "Most tokens to generate; all that the context leaves when absent", "1 to the context"),
    FieldRow("temperature", "Flattens or sharpens the distribution; 0 is greedy. Default 1", "0 to 2", default=1),
    FieldRow(
        "top_p",
        "Sample only from the likeliest tokens that together reach this probability",
        "0 to 1; 0 leaves the likeliest alone",
        default=1,
    ),
    FieldRow("frequency_penalty", "Lowers tokens by how often they were generated", "-2 to 2", default=0),
    FieldRow("presence_penalty", "Lowers tokens that were generated at all", "-2 to 2", default=0),
    FieldRow(
        "logit_bias",
        "Added to the logits of single tokens",
        "object of token id to -100..100, at most 1024 entries; an array is refused",
    ),
    FieldRow("n", "Completions to generate", f"1 to {MAX_N}", default=1),
    FieldRow("seed", "Makes sampling repeatable", "64-bit integer"),
    FieldRow(
        "stop",
        "Generation ends before the first of these",
        f"a string or up to {MAX_STOP_STRINGS}, each of 1 to {MAX_STOP_CHARS} characters; an empty string is none",
    ),
    FieldRow("stream", "Send tokens as server-sent events", "boolean", default=False),
    FieldRow(
        "stream_options",
        "`include_usage` adds a last chunk with the usage, `continuous_usage_stats` puts it in every chunk; an "
        "`include_usage` of false sends none",
        "object; without stream it asks for nothing",
    ),
    FieldRow("user", "A label of the caller's own", "at most 512 characters", "hint"),
    FieldRow("top_k", "Sample only from so many likeliest tokens; 0 and -1 keep all", "-1 or more", default=0),
    FieldRow("min_p", "Sample only from tokens at least so likely, relative to the likeliest", "0 to 1", default=0),
    FieldRow(
        "repetition_penalty",
        "Divides the logits of tokens in prompt and answer; 1 is none",
        "above 0, to 10",
        default=1,
    ),
    FieldRow(
        "min_tokens",
        "No end-of-sequence or stop token before so many; stop strings may end it",
        "0 to max_tokens",
        default=0,
    ),
    FieldRow("ignore_eos", "Generate on past the model's end-of-sequence token", "boolean", default=False),
    FieldRow("stop_token_ids", "Token ids that end the answer and are not shown", "at most 64 ids"),
    FieldRow(
        "include_stop_str_in_output",
        "Show the stop string or stop token that ended the answer",
        "boolean",
        default=False,
    ),
    FieldRow("skip_special_tokens", "Leave control tokens out of the text. Default true", "boolean", default=True),
    FieldRow(
        "priority",
        "Who is served first where requests wait: the lower number. Default 0",
        f"-{MAX_PRIORITY} to {MAX_PRIORITY}",
        default=0,
    ),
    FieldRow(
        "timeout",
        "Ends the request if its answer is not complete in so many seconds, waiting included; the server's own limit "
        "holds too",
        f"more than 0, to {MAX_TIMEOUT}; in seconds",
    ),
)
_TOOLS = (
    FieldRow(
        "tools",
        "Functions the model may call. Arguments are held to the function's schema, `parameters` or `arguments`, "
        "to the letter where `strict` is true, else as far as possible",
        f"at most {MAX_TOOLS}, with names of 1 to 64 letters, digits, and of `. : / - _`",
    ),
    FieldRow(
        "tool_prompt",
        "Text before the tools: in front of the system text, or in place of the sentence that introduces the tools to "
        "models whose template does not describe them",
        "text; needs tools",
    ),
    FieldRow(
        "tool_choice",
        "Whether tools are called. With `none` the model is not told of them",
        "`auto` (the default), `none`, `required` or `any`, the name of a function, or an object that names one, or "
        "with `allowed_tools` several",
    ),
    FieldRow(
        "parallel_tool_calls",
        "Several calls in one turn. Default true, where the model's template can show them",
        "boolean; without tools it asks for nothing",
        default=True,
    ),
    FieldRow(
        "functions",
        "OpenAI's older form of tools; a call is answered as `function_call`, one at most",
        f"at most {MAX_TOOLS}; excludes tools",
    ),
    FieldRow(
        "function_call",
        "OpenAI's older form of tool_choice",
        "`auto`, `none`, or an object that names a function",
    ),
)
_CONSTRAINTS = (
    FieldRow(
        "response_format",
        "Holds the content to a JSON Schema (`json_schema`, `json`), to any JSON object (`json_object`), or to a "
        "regular expression (`regex`)",
        "`text`, `json_object`, `json_schema`, `json` or `regex`; a schema is in `json_schema`, `value` or `schema`",
    ),
    FieldRow(
        "grammar",
        "Holds the content to a context-free grammar in llguidance's dialect of Lark",
        f"text with a rule `start`, at most {MAX_GRAMMAR_CHARS} characters; excludes response_format",
    ),
    FieldRow(
        "choice",
        "Makes the content one of these texts",
        f"1 to {MAX_CHOICES} texts; excludes response_format and grammar",
    ),
    FieldRow(
        "structured_outputs",
        "vLLM's name for the same: a schema, which is followed to the letter, an expression, texts or a grammar",
        "object with one of `json`, `regex`, `choice`, `grammar`, `json_object`; excludes the fields above",
    ),
)
_REFUSED = (
    FieldRow("store", "Keep the completion for later", "false; true is refused", "partly"),
    FieldRow("service_tier", "Processing tier", "`auto` or `default`; anything else is refused", "partly"),
    FieldRow("modalities", "What answers are made of", '`["text"]`; anything else is refused', "partly"),
    FieldRow("audio", "A voice", "null; anything else is refused", "refused"),
    FieldRow("verbosity", "How much the model says", "`medium`; anything else is refused", "partly"),
    FieldRow("web_search_options", "Searching", "null; anything else is refused", "refused"),
    FieldRow("moderation", "Judging of content", "null; anything else is refused", "refused"),
    FieldRow("best_of", "Choices to compute", "n; anything else is refused", "partly"),
)
_HINTS = (
    FieldRow(
        "prompt_cache_key",
        "Which requests share cached prompts: those with other keys do not",
        f"at most {MAX_LABEL_CHARS} characters",
        "hint",
    ),
    FieldRow("prompt_cache_retention", "How long prompts are cached", "text", "hint"),
    FieldRow("prompt_cache_options", "How prompts are cached; here every prefix is", "object", "hint"),
    FieldRow("safety_identifier", "A label of the caller's own", f"at most {MAX_LABEL_CHARS} characters", "hint"),
    FieldRow("prediction", "A text that the answer will mostly repeat", "object", "hint"),
    FieldRow("cache_control", "How prompts are cached, also in messages, parts and tools", "object", "hint"),
    FieldRow("metadata", "Labels of the caller's own", "at most 16 entries", "hint"),
)
_CHAT = (
    FieldRow("max_completion_tokens", "OpenAI's newer name of max_tokens", "1 to the context"),
    FieldRow(
        "logprobs",
        "Return the log-probability of each generated token, before any sampling option",
        "boolean",
        default=False,
    ),
    FieldRow(
        "top_logprobs", "Return so many likeliest alternatives too", "0 to 20; more than 0 needs logprobs", default=0
    ),
    FieldRow(
        "reasoning_effort",
        "Limits the reasoning of a model that reasons: to 0, 256, 1024, 4096, 16384 or 32768 tokens",
        "`none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`, or `auto` or `default` for no limit; "
        "to a model that does not reason it is a hint",
    ),
    FieldRow(
        "max_reasoning_tokens",
        "Limits the reasoning to so many tokens; then it is ended and the answer begins",
        "0 or more; 0 alone on a model that does not reason; excludes reasoning_effort",
    ),
)
_COMPLETION = (
    FieldRow(
        "logprobs",
        "Return the log-probability of each token, before any sampling option, and of so many likeliest ones; with "
        "echo those of the prompt too",
        "0 to 20",
    ),
    FieldRow("echo", "Begin each answer with its prompt", "boolean"),
    FieldRow("best_of", "Choices to compute for each prompt", "n; more is refused", "partly"),
    FieldRow("suffix", "Text behind the gap to fill", "an empty string; anything else is refused", "partly"),
)
