"""From requests to plans: defaults, limits, and what each field becomes."""

import json
from typing import Any

import pytest

from engine.messages import EngineInfo
from engine.sampling_params import SamplingParams
from server.config.sampling_defaults import SamplingDefaults
from server.prompt.plan import PromptPlan, plan_chat, system_fingerprint
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.errors import ApiError
from server.protocol.fields import FieldRow, field_table
from server.protocol.request import parse_chat_request

QUESTION = [{"role": "user", "content": "hi"}]


def engine_info(**changes: Any) -> EngineInfo:
    values: dict[str, Any] = {
        "name": "m",
        "model_dir": "",
        "architecture": "LlamaForCausalLM",
        "context": 100,
        "vocab_size": 49152,
        "eos_token_ids": [2],
        "device": "cpu",
        "dtype": "float32",
        "attention": "reference",
        "block_size": 16,
        "num_blocks": 64,
        "max_num_seqs": 4,
        "weights_bytes": 0,
        "kv_bytes": 0,
        "num_parameters": 0,
        "load_seconds": 0.0,
        "generation_defaults": {"temperature": 0.2},
        "numerics": "cpu float32",
        "notes": [],
    }
    return EngineInfo(**values | changes)


def plan(tokenizer: ChatTokenizer, info: EngineInfo | None = None, **fields: Any) -> PromptPlan:
    request = parse_chat_request(json.dumps({"messages": QUESTION} | fields).encode())
    return plan_chat(request, tokenizer, info or engine_info(), SamplingDefaults())


def refusal(tokenizer: ChatTokenizer, info: EngineInfo | None = None, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        plan(tokenizer, info, **fields)
    assert caught.value.status == 400
    return caught.value


def test_defaults_are_openais(smollm2_tokenizer: ChatTokenizer) -> None:
    made = plan(smollm2_tokenizer)
    prompt = smollm2_tokenizer.encode_prompt(QUESTION)
    assert made.prompt_token_ids == prompt
    assert made.params == SamplingParams(max_tokens=100 - len(prompt))
    assert (made.n, made.stop, made.stream, made.logprobs, made.continues) == (1, (), False, False, False)
    assert made.skip_special_tokens and not made.include_stop and not made.include_usage
    assert made.hidden_ids == {2}


@pytest.mark.parametrize("row", [row for row in field_table() if row.default is not None], ids=lambda row: row.name)
def test_a_default_that_is_told_is_what_holds_without_the_field(
    row: FieldRow, smollm2_tokenizer: ChatTokenizer
) -> None:
    assert plan(smollm2_tokenizer, **{row.name: row.default}) == plan(smollm2_tokenizer)


def test_every_sampling_field_arrives(smollm2_tokenizer: ChatTokenizer) -> None:
    made = plan(
        smollm2_tokenizer,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        frequency_penalty=-1,
        presence_penalty=1,
        repetition_penalty=1.1,
        logit_bias={"5": -100},
        seed=-3,
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=[9, 9, 8],
        logprobs=True,
        top_logprobs=4,
        n=3,
        stop=["x", "x", "y"],
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    assert made.params == SamplingParams(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        frequency_penalty=-1.0,
        presence_penalty=1.0,
        repetition_penalty=1.1,
        logit_bias={5: -100.0},
        seed=-3,
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=(9, 8),
        logprobs=4,
    )
    assert (made.n, made.stop, made.stream, made.include_usage, made.continuous_usage) == (
        3,
        ("x", "y"),
        True,
        True,
        True,
    )
    assert made.hidden_ids == {8, 9}
    assert plan(smollm2_tokenizer, logprobs=True).params.logprobs == 0
    assert plan(smollm2_tokenizer, logprobs=False).params.logprobs is None
    assert plan(smollm2_tokenizer, stop_token_ids=[9], include_stop_str_in_output=True).hidden_ids == frozenset()


def test_the_context_is_never_overrun_nor_the_prompt_cut(smollm2_tokenizer: ChatTokenizer) -> None:
    used = len(smollm2_tokenizer.encode_prompt(QUESTION))
    assert plan(smollm2_tokenizer, engine_info(context=used + 1)).params.max_tokens == 1
    assert plan(smollm2_tokenizer, max_tokens=100 - used).params.max_tokens == 100 - used
    too_long = refusal(smollm2_tokenizer, engine_info(context=used))
    assert (too_long.code, too_long.param) == ("context_length_exceeded", "messages")
    assert str(used) in too_long.message
    for field in ("max_tokens", "max_completion_tokens"):
        too_much = refusal(smollm2_tokenizer, **{field: 101 - used})
        assert (too_much.code, too_much.param) == ("context_length_exceeded", field)
        assert all(str(number) in too_much.message for number in (100, used, 101 - used))
    assert refusal(smollm2_tokenizer, engine_info(num_blocks=1)).code == "context_length_exceeded", (
        "the pool is smaller"
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"stop_token_ids": [49152]}, "stop_token_ids"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"chat_template_kwargs": {"enable_tools": True}}, "chat_template_kwargs"),
    ],
)
def test_what_only_the_model_can_tell_is_refused_by_name(
    fields: dict[str, Any], param: str, smollm2_tokenizer: ChatTokenizer
) -> None:
    assert refusal(smollm2_tokenizer, **fields).param == param


def test_continuing_the_last_message(smollm2_tokenizer: ChatTokenizer) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "Sure, "}]
    made = plan(smollm2_tokenizer, messages=messages, continue_final_message=True)
    assert smollm2_tokenizer.decode(made.prompt_token_ids, False).endswith("<|im_start|>assistant\nSure, ")
    assert made.continues
    bare = plan(smollm2_tokenizer, add_generation_prompt=False)
    assert smollm2_tokenizer.decode(bare.prompt_token_ids, False).endswith("hi<|im_end|>\n")


def test_the_fingerprint_follows_the_numerics() -> None:
    assert system_fingerprint(engine_info()) == system_fingerprint(engine_info(name="other"))
    assert system_fingerprint(engine_info()) != system_fingerprint(engine_info(numerics="cuda bfloat16"))
    assert system_fingerprint(engine_info()).startswith("fp_")
