"""What the description of the API says of each route beyond what its code does: shapes, examples, errors."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from server.answer.relaxed import RELAXED_HEADER, UNUSED_HEADER
from server.metrics import CONTENT_TYPE
from server.protocol.admin_request import AdminRequest
from server.protocol.completion_request import CompletionRequest
from server.protocol.fields import FieldRow, completion_field_table, field_table
from server.protocol.generate_request import GenerateRequest
from server.protocol.generate_shapes import GeneratedArrayShape, GeneratedEventShape, GeneratedShape
from server.protocol.model_shapes import HealthShape, LivezShape, ModelListShape, ModelShape, ReadyzShape
from server.protocol.request import ChatCompletionRequest
from server.protocol.shapes import (
    ChatCompletionChunkShape,
    ChatCompletionShape,
    PromptTextShape,
    TextCompletionShape,
    TokensShape,
)
from server.protocol.tokenize_request import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest

Json = dict[str, Any]

OF_BODIES = (404, 408, 413, 415, 503)
"""Further ones of routes that read a body and name a model."""
OF_WORK = (429, *OF_BODIES)
"""Of those that count against the limits of a key."""
OF_ANSWERS = (*OF_WORK, 504)
"""Of those that generate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Details:
    """What the description says of one route beyond its summary; `answer` is the answer's shape, or its media type."""

    answer: type[BaseModel] | str
    description: str
    answer_example: Any = None
    answer_headers: Json = field(default_factory=dict)
    """Name -> what the header of an answer says."""
    request: tuple[type[BaseModel], ...] = ()
    """The shapes a body may have."""
    needs_body: bool = True
    """Whether it may not be left out."""
    fields: tuple[FieldRow, ...] = ()
    """What the fields of the first of them mean."""
    request_examples: Json = field(default_factory=dict)
    """Name -> body."""
    event: type[BaseModel] | None = None
    """The shape of a stream's events, where the answer can be streamed."""
    event_example: Any = None
    errors: tuple[int, ...] = ()
    unhealthy: type[BaseModel] | None = None
    """The shape of a 503 that is no error."""
    parameters: tuple[Json, ...] = ()
    is_open: bool = False
    """Whether it needs no key even where others do."""


_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_HEAD = {"id": "chatcmpl-5f2b", "created": 1790000000, "model": "small", "system_fingerprint": "fp_0a1b2c3d4e5f"}
_GENERATE: Any = {
    "request": (GenerateRequest,),
    "request_examples": {
        "text": {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 5}},
        "grammar": {
            "inputs": "Today is ",
            "parameters": {"grammar": {"type": "regex", "value": "[A-Z][a-z]+day"}, "max_new_tokens": 9},
        },
    },
    "errors": OF_ANSWERS,
}
_USAGE = {
    "prompt_tokens": 36,
    "completion_tokens": 8,
    "total_tokens": 44,
    "prompt_tokens_details": {"cached_tokens": 0},
}
_MODEL = {
    "id": "small",
    "object": "model",
    "created": 1790000000,
    "owned_by": "headrace",
    "state": "unloaded",
    "load": "on_demand",
    "last_used": None,
    "memory_bytes": None,
    "requests": 0,
    "error": None,
}

_NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "May contain slashes",
    "schema": {"type": "string"},
}


def _of_operators(what: str, state: str, *, errors: tuple[int, ...]) -> Details:
    """A route that changes where a model stands; with `stream` it tells of each stage."""
    return Details(
        description=f"For operators: {what}",
        request=(AdminRequest,),
        needs_body=False,
        request_examples={"stages": {"stream": True}},
        answer=ModelShape,
        answer_example=_MODEL,
        event=ModelShape,
        event_example=f'data: {{"id":"small","state":"{state}", ...}}\n\ndata: [DONE]\n\n',
        errors=errors,
        parameters=(_NAME,),
    )


DETAILS: dict[str, Details] = {
    "/v1/chat/completions": Details(
        description="Answers in one piece, or with `stream` as server-sent events that end with `[DONE]`. A model that "
        "is not loaded is loaded first: a stream tells of it in comments (`: loading: reading weights, 40 %`), and "
        "what is wrong with the request then comes as its last event.",
        request=(ChatCompletionRequest,),
        fields=tuple(field_table()),
        request_examples={
            "question": {"messages": _QUESTION, "max_tokens": 50},
            "stream": {"messages": _QUESTION, "stream": True, "stream_options": {"include_usage": True}},
            "choices": {"messages": _QUESTION, "n": 2, "seed": 7, "max_tokens": 5, "logprobs": True, "top_logprobs": 2},
        },
        answer=ChatCompletionShape,
        answer_example={
            **_HEAD,
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "The capital of France is Paris.",
                        "refusal": None,
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
        },
        answer_headers={
            RELAXED_HEADER.decode(): "Keywords that the answer is not held to, of schemas that are not strict: JSON "
            "pointers into the request, separated by commas, and `+N more` where there are many",
            UNUSED_HEADER.decode(): "What of the request was taken and not used, in the same form",
        },
        event=ChatCompletionChunkShape,
        event_example='data: {"id":"chatcmpl-5f2b", ...}\n\ndata: [DONE]\n\n',
        errors=OF_ANSWERS,
    ),
    "/v1/completions": Details(
        description="OpenAI's older interface: no chat template is applied. Streams as chat completions do.",
        request=(CompletionRequest,),
        fields=tuple(completion_field_table()),
        request_examples={
            "prompt": {"prompt": "The capital of France is", "max_tokens": 5},
            "prompts": {"prompt": ["One, two,", "Uno, due,"], "max_tokens": 5, "logprobs": 1, "echo": True},
            "stream": {"prompt": "Once", "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}},
        },
        answer=TextCompletionShape,
        answer_example={
            **_HEAD,
            "id": "cmpl-5f2b",
            "object": "text_completion",
            "choices": [{"index": 0, "text": " Paris.", "logprobs": None, "finish_reason": "stop"}],
            "usage": _USAGE,
        },
        event=TextCompletionShape,
        event_example='data: {"id":"cmpl-5f2b", ...}\n\ndata: [DONE]\n\n',
        errors=OF_ANSWERS,
    ),
    "/generate": Details(
        description="Text Generation Inference's interface: no chat template is applied, and without an option that "
        "says how to sample the likeliest token is taken. `grammar` has the types of response_format.",
        answer=GeneratedShape,
        **_GENERATE,
    ),
    "/generate_stream": Details(
        description="As /generate, an event for each token; there is no [DONE].",
        answer=GeneratedShape,
        event=GeneratedEventShape,
        event_example='data: {"index":1,"token":{"id":7042,"text":" Paris", ...}, ...}\n\n',
        **_GENERATE,
    ),
    "/": Details(
        description="As /generate_stream where `stream` is true, else as /generate, in an array.",
        answer=GeneratedArrayShape,
        event=GeneratedEventShape,
        event_example='data: {"index":1,"token":{"id":7042,"text":" Paris", ...}, ...}\n\n',
        **_GENERATE,
    ),
    "/tokenize": Details(
        description="The tokens that a request with this prompt, or these messages, would be computed from.",
        request=(TokenizeTextRequest, TokenizeChatRequest),
        request_examples={
            "prompt": {"prompt": "The capital of France is"},
            "messages": {"messages": _QUESTION, "return_token_strs": True},
        },
        answer=TokensShape,
        answer_example={
            "count": 2,
            "max_model_len": 8192,
            "tokens": [504, 3575],
            "token_strs": ["The", " capital"],
            "special_positions": [],
            "cached_tokens": None,
        },
        errors=OF_WORK,
    ),
    "/detokenize": Details(
        description="The text of tokens; control tokens are written out.",
        request=(DetokenizeRequest,),
        request_examples={"tokens": {"tokens": [504, 3575]}},
        answer=PromptTextShape,
        answer_example={"prompt": "The capital"},
        errors=OF_WORK,
    ),
    "/v1/models": Details(
        description="Every model of this server that the key may use, loaded or not.",
        answer=ModelListShape,
        answer_example={"object": "list", "data": [_MODEL]},
    ),
    "/v1/models/{name}": Details(
        description="One model, by its name or an alias.",
        answer=ModelShape,
        answer_example=_MODEL,
        errors=(404,),
        parameters=(_NAME,),
    ),
    "/admin/models/{name}/load": _of_operators(
        "loads a model now, also one whose load has failed. With `stream` the events are the model at each stage.",
        "loading",
        errors=OF_BODIES,
    ),
    "/admin/models/{name}/unload": _of_operators(
        "ends a model's process and waits until its memory is free.", "unloading", errors=(409, *OF_BODIES)
    ),
    "/admin/models/{name}/sleep": _of_operators(
        "frees a GPU of a model, whose process stays, and keeps its weights in the host's memory, so that the next "
        "request has it back without a load. On a CPU the model is unloaded.",
        "asleep",
        errors=(409, *OF_BODIES),
    ),
    "/health": Details(
        description="200 when what is loaded at start can answer now, else 503; with the state of every model. "
        "Needs no key.",
        answer=HealthShape,
        answer_example={"status": "ready", "models": {"small": "ready"}},
        unhealthy=HealthShape,
        is_open=True,
    ),
    "/livez": Details(
        description="200 as long as the server's process answers at all. Needs no key.",
        answer=LivezShape,
        answer_example={"status": "live"},
        is_open=True,
    ),
    "/readyz": Details(
        description="200 when requests should be sent here: what is loaded at start can answer, the server is neither "
        "full nor ending. Needs no key.",
        answer=ReadyzShape,
        answer_example={"status": "ready"},
        unhealthy=ReadyzShape,
        is_open=True,
    ),
    "/openapi.json": Details(
        description="What the routes take and answer, in OpenAPI's terms.", answer="application/json"
    ),
    "/metrics": Details(description="Counters and gauges in the Prometheus text format.", answer=CONTENT_TYPE),
}
