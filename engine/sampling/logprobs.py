"""Log-probabilities from raw logits in fp32: of sampled tokens, and of a prompt's own tokens."""

import numpy as np
import torch

from engine.device.device import to_device
from engine.messages import TokenLogprobs
from engine.scheduling.scheduled import Scheduled

SLICE = 64
"""Rows of a prompt whose logits are in fp32 at once."""


def logprob_columns(raw: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> torch.Tensor:
    """Of each row of `raw` fp32 `[R, V]`, what `read_logprobs` reads: int32 `[R, 1 + 2 * width]`.

    The bits of the log-probability of `token_ids` int64 `[R]`, then the `width` = min(`num_top`, V) likeliest ids, then
    the bits of theirs.
    """
    log_z = raw.logsumexp(dim=-1, keepdim=True)
    own = (raw.gather(1, token_ids.unsqueeze(1)) - log_z).view(torch.int32)
    if num_top == 0:
        return own
    top = raw.topk(min(num_top, raw.shape[1]), dim=-1)
    return torch.cat((own, top.indices.to(torch.int32), (top.values - log_z).view(torch.int32)), dim=1)


def read_logprobs(packed: np.ndarray, num_top: int) -> TokenLogprobs:
    """One row of `logprob_columns`, on the host, of which the `num_top` likeliest are wanted."""
    width = (len(packed) - 1) // 2
    floats = packed.view(np.float32)
    wanted = min(num_top, width)
    return TokenLogprobs(
        logprob=float(floats[0]),
        top_ids=packed[1 : 1 + wanted].tolist(),
        top_logprobs=floats[1 + width : 1 + width + wanted].tolist(),
    )


def score_prompts(logits: torch.Tensor, rows: list[Scheduled]) -> list[list[TokenLogprobs] | None]:
    """For each of the rows, all of which score, an entry for each of its scored positions: of the token that follows.

    `logits` `[R, V]` are those of the scored positions, in order. None where some of a row's were not finite.
    """
    following = [row.sequence.token_ids[position + 1] for row in rows for position in row.scored]
    num_top = max(row.sequence.params.prompt_logprobs or 0 for row in rows)
    targets = to_device(np.array(following, dtype=np.int64), logits.device)
    pieces = []
    for start in range(0, len(following), SLICE):
        raw = logits[start : start + SLICE].float()
        finite = torch.isfinite(raw.max(dim=-1, keepdim=True).values).to(torch.int32)
        pieces.append(torch.cat((finite, logprob_columns(raw, targets[start : start + SLICE], num_top)), dim=1))
    packed = torch.cat(pieces).cpu().numpy()
    scores: list[list[TokenLogprobs] | None] = []
    start = 0
    for row in rows:
        mine = packed[start : start + len(row.scored)]
        start += len(mine)
        wanted = row.sequence.params.prompt_logprobs or 0
        scores.append([read_logprobs(entry[1:], wanted) for entry in mine] if mine[:, 0].all() else None)
    return scores
