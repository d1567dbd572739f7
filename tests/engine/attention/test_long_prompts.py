"""What long prompts are padded to."""

from engine.attention.long_prompts import SHORTEST, padded_len, padded_lens


def test_few_lengths_serve_all_prompts() -> None:
    lens = padded_lens(8192)
    assert len(lens) == 11 and lens[0] == 1024 and lens[-1] == 8192
    for tokens in range(SHORTEST, 8193):
        length = padded_len(tokens)
        assert length in lens and tokens <= length < tokens + 1024
    assert not padded_lens(SHORTEST - 1)
