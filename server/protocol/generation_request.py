"""What every request that generates text may hold: sampling, ends, streaming. Each kind adds the rest."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, WithJsonSchema, field_validator

from engine.sampling_params import MAX_LOGIT_BIAS, MAX_SEED, MAX_STOP_TOKEN_IDS
from engine.scheduling.admission import MAX_PRIORITY
from server.protocol.errors import BRANCH_LIST, BRANCH_TEXT, WRONG_BRANCH
from server.protocol.messages import UNLESS_EMPTY, Integer, text_or_list
from server.protocol.strict_model import StrictModel

MAX_N = 16
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 1024
MAX_INT = 2**31 - 1
MAX_TIMEOUT = 86_400
"""Seconds that a request may give itself."""

TokenCount = Annotated[Integer, Field(ge=1, le=MAX_INT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
StopTokenId = Annotated[Integer, Field(ge=0, le=MAX_INT)]
ModelName = Annotated[Annotated[str, Field(max_length=512)] | None, UNLESS_EMPTY]
StopString = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
WholeStop = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_LOGIT_BIAS),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {"^(0|[1-9][0-9]{0,9})$": {"type": "number", "minimum": -100, "maximum": 100}},
            "additionalProperties": False,
            "maxProperties": MAX_LOGIT_BIAS,
        }
    ),
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[
    Annotated[WholeStop, Tag(BRANCH_TEXT)]
    | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS), Tag(BRANCH_LIST)],
    Discriminator(
        text_or_list, custom_error_type=WRONG_BRANCH, custom_error_message="must be a string or an array of strings"
    ),
]


class StreamOptions(StrictModel):
    """What a stream reports besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None
    """OpenAI's padding against those who measure encrypted streams; there is none here."""


class GenerationRequest(StrictModel):
    """The fields that chats and raw completions share. `null` means that a field was not given."""

    model: ModelName = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    n: Annotated[Integer, Field(ge=1, le=MAX_N)] | None = None
    seed: Annotated[Integer, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    top_k: Annotated[Integer, Field(ge=-1, le=MAX_INT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[Integer, Field(ge=0, le=MAX_INT)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[StopTokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Annotated[Integer, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT)] | None = None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _logit_bias_is_a_map(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("must be an object of token ids and biases; the array form has no defined meaning")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _logit_bias_keys_are_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            # isdecimal alone would pass digits of other scripts.
            if not (key.isascii() and key.isdecimal() and len(key) <= 10 and (key == "0" or key[0] != "0")):
                raise ValueError(f"must have token ids as keys, got {key[:40]!r}")
        return value

    @property
    def token_limit(self) -> int | None:
        """How long an answer may be, None where the request does not say."""
        return self.max_tokens

    @property
    def least_answer_tokens(self) -> int:
        """What a key must allow an answer: as much as the request says, or if it does not say, the shortest answer."""
        return max(1, self.min_tokens or 0) if self.token_limit is None else self.token_limit

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` in its plural form, without repetitions; an empty text is no stop string."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(dict.fromkeys(text for text in given if text))
