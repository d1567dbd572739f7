"""When a sequence ends, judged on token ids alone: end-of-sequence, stop tokens, length.

Stop strings are text and therefore the server's; it aborts the sequence when one appears.
"""

from engine.scheduling.sequence import Sequence


def finish_reason(sequence: Sequence) -> str | None:
    """Why the sequence ends after its newest token, or None if it goes on.

    A stop token on the last allowed position reports `stop`, not `length`: the answer is complete.
    """
    params = sequence.params
    token_id = sequence.token_ids[-1]
    if sequence.num_generated >= params.min_tokens:
        if not params.ignore_eos and token_id in sequence.eos_token_ids:
            return "stop"
        if token_id in params.stop_token_ids:
            return "stop"
    if sequence.num_generated >= params.max_tokens or sequence.num_tokens >= sequence.max_len:
        return "length"
    return None


def suppressed_token_ids(sequence: Sequence) -> list[int]:
    """Tokens the sampler must not draw now: those that would end the sequence before `min_tokens`."""
    params = sequence.params
    if sequence.num_generated >= params.min_tokens:
        return []
    ending = set(params.stop_token_ids)
    if not params.ignore_eos:
        ending |= sequence.eos_token_ids
    return sorted(ending)
