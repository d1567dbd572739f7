"""A GGUF file's vocabulary as `tokenizer.json` and `tokenizer_config.json`.

The file names its way of splitting text only by a word (`tokenizer.ggml.pre`); the expressions behind the words are
those of the models' own `tokenizer.json`. A word that is not known is an error: a guess would give the model other
tokens than it was trained on, and nobody would see it.
"""

from collections.abc import Iterable
from typing import Any

from engine.errors import ModelLoadError
from engine.weights.gguf_file import GGUFFile

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r"}
_PLAIN = {"gpt-2", "olmo", "phi-2", "mpt"}
# Whole words of the vocabulary are taken without replaying their merges (`ignore_merges` of the models' own files).
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "tekken"}
_COMPOSED = {"qwen2", "deepseek-r1-qwen"}
_BEGINS_WITH_BOS = {"llama-bpe", "llama3", "llama-v3", "tekken"}

# Control tokens that end a turn or a text in the models whose files may not say so.
_END_TOKENS = {
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
}


def build_tokenizer(file: GGUFFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content of tokenizer.json and of tokenizer_config.json. Raises `ModelLoadError` for an unknown kind."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        parts = _byte_level(file)
    elif kind == "llama":
        parts = _sentencepiece(file)
    else:
        raise ModelLoadError(
            f"{file.path.name} has a tokenizer of kind {kind!r}; only gpt2 and llama can be converted",
            hint="Use the model's safetensors and tokenizer.json instead.",
        )
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(file),
        "post_processor": _post_processor(file),
    }
    return tokenizer | parts, _tokenizer_config(file)


def end_token_ids(file: GGUFFile) -> list[int]:
    """Every token that ends an answer: those the file names first, then well-known control tokens."""
    named = (file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    known = (index for index, token in _of_type(file, _CONTROL) if token in _END_TOKENS)
    return list(dict.fromkeys([*(index for index in named if index is not None), *known]))


def _of_type(file: GGUFFile, wanted: int) -> Iterable[tuple[int, str]]:
    types = file.metadata.get("tokenizer.ggml.token_type", [])
    tokens = file.metadata["tokenizer.ggml.tokens"]
    return ((i, token) for i, (token, kind) in enumerate(zip(tokens, types, strict=False)) if kind == wanted)


def _added_tokens(file: GGUFFile) -> list[dict[str, Any]]:
    """Control tokens are special; tokens the model's makers added as plain text (`<think>`) are matched whole too."""
    added = [(index, token, True) for index, token in _of_type(file, _CONTROL)]
    added += [(index, _respelled(token), False) for index, token in _of_type(file, _USER_DEFINED)]
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for index, token, special in sorted(added)
    ]


def _respelled(token: str) -> str:
    """Runs of spaces are written out in the file, while sentencepiece's vocabulary holds them as its own sign."""
    return token if token.strip(" ") else _SPACE * len(token)


def _byte_level(file: GGUFFile) -> dict[str, Any]:
    pre = file.metadata.get("tokenizer.ggml.pre")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if pre in _SINGLE_DIGITS:
        steps = [{"type": "Digits", "individual_digits": True}, byte_level]
    elif pre in _PLAIN:
        steps = [byte_level]
    elif pre in _SPLITS:
        split = {"type": "Split", "pattern": {"Regex": _SPLITS[pre]}, "behavior": "Isolated", "invert": False}
        steps = [split, byte_level | {"use_regex": False}]
    else:
        raise ModelLoadError(
            f"{file.path.name} splits text by the rule {pre!r}, which is not known",
            hint="Use the model's safetensors and tokenizer.json instead.",
        )
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre in _WHOLE_WORDS,
        "vocab": _vocabulary(file),
        "merges": [merge.split(" ", 1) for merge in file.metadata["tokenizer.ggml.merges"]],
    }
    return {
        "normalizer": {"type": "NFC"} if pre in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": byte_level,
        "model": model,
    }


def _vocabulary(file: GGUFFile) -> dict[str, int]:
    return {token: index for index, token in enumerate(file.metadata["tokenizer.ggml.tokens"])}


def _sentencepiece(file: GGUFFile) -> dict[str, Any]:
    is_gemma = file.architecture.startswith("gemma")
    tokens = [_respelled(token) for token in file.metadata["tokenizer.ggml.tokens"]]
    # Gemma's scores do not follow its order of merging; the order of the vocabulary does.
    scores = [-float(i) for i in range(len(tokens))] if is_gemma else file.metadata["tokenizer.ggml.scores"]
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": _merges_of(tokens, scores),
    }
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not is_gemma and file.metadata.get("tokenizer.ggml.add_space_prefix", True):
        normalizer: dict[str, Any] = {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": _SPACE}, replace],
        }
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    else:
        normalizer = replace
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _merges_of(tokens: list[str], scores: list[float]) -> list[list[str]]:
    """The merges a sentencepiece vocabulary implies: every pair of tokens that makes a third, best score first."""
    ids = {token: index for index, token in enumerate(tokens)}
    ranked = []
    for index, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[index], left, right))
    ranked.sort()
    return [[tokens[left], tokens[right]] for _, left, right in ranked]


def _begins_with_bos(file: GGUFFile) -> bool:
    """Whether plain text gets a beginning-of-sequence token; where the file is silent, as llama.cpp decides it."""
    default = (
        file.metadata.get("tokenizer.ggml.model") == "llama"
        or file.metadata.get("tokenizer.ggml.pre") in _BEGINS_WITH_BOS
    )
    return bool(file.metadata.get("tokenizer.ggml.add_bos_token", default))


def _post_processor(file: GGUFFile) -> dict[str, Any] | None:
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    if bos is None or not _begins_with_bos(file):
        return None
    token = file.metadata["tokenizer.ggml.tokens"][bos]
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    text = [{"Sequence": {"id": part, "type_id": kind}} for part, kind in (("A", 0), ("B", 1))]
    return {
        "type": "TemplateProcessing",
        "single": [first, text[0]],
        "pair": [first, *text],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
    }


def _tokenizer_config(file: GGUFFile) -> dict[str, Any]:
    tokens = file.metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.field("context_length"),
        "add_bos_token": _begins_with_bos(file),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token_id = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    if template := file.metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config
