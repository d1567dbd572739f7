"""The attention of long prompts by cuDNN, on Hopper twice as fast as our own kernel (bench/LOG.md, 2026-11-26).

It serves prompts from their first token on. cuDNN plans anew for every length it meets, for some 40 ms, so prompts are
padded to a few lengths, all planned when a model is loaded: under a causal mask nobody sees the padding behind.
"""

import logging
from dataclasses import dataclass

import torch

from engine.device.kv_cache import LayerCache

logger = logging.getLogger(__name__)

CAPABILITY = (9, 0)
"""Compute capability from which on cuDNN was measured to be faster."""
FINE, COARSE, TURN = 512, 1024, 4096
"""Lengths are multiples of the first up to the last, and of the second beyond."""
SHORTEST = 768
"""Tokens of a prompt from which on it is worth its copies."""
MAX_HEAD_DIM = 128
DTYPES = (torch.bfloat16, torch.float16)


@dataclass(slots=True)
class LongPrompt:
    """One prompt of a step."""

    tokens: slice
    blocks: torch.Tensor
    """int64 [padded_len / block_size]: its own, then the null block."""
    padded_len: int
    rows: torch.Tensor | None = None
    """int64 [KV * blocks]: where the blocks of all heads stand in a cache, once a layer has asked."""

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return int(self.tokens.stop - self.tokens.start)


def padded_len(tokens: int) -> int:
    """The length that a prompt is padded to."""
    multiple = FINE if tokens <= TURN else COARSE
    return -(-tokens // multiple) * multiple


def padded_lens(largest: int) -> list[int]:
    """All lengths that prompts of up to `largest` tokens are padded to."""
    return sorted({padded_len(tokens) for tokens in range(SHORTEST, largest + 1)})


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention of q `[1, H, n, D]` over k and v `[1, KV, n, D]`; returns `[1, H, n, D]`."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)


class LongPrompts:
    """Serves the long prompts of one model, if this GPU is one for it."""

    def __init__(self, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._is_able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
        self.longest = 0
        """Tokens of the longest prompt that can be served; 0 before `prepare`."""

    @torch.inference_mode()
    def prepare(
        self, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device, largest: int
    ) -> None:
        """Let cuDNN plan for all lengths up to `largest`; where it cannot, nothing is served."""
        if not self._is_able or dim > MAX_HEAD_DIM or dtype not in DTYPES or FINE % self._block_size:
            return
        try:
            for length in padded_lens(largest):
                q = torch.zeros(length, heads, dim, dtype=dtype, device=device).transpose(0, 1)
                k, v = torch.zeros(2, kv_heads, length, dim, dtype=dtype, device=device)
                attend(q[None], k[None], v[None], 1.0)
        except RuntimeError:
            logger.info("long prompts are not served by cuDNN", exc_info=True)
            return
        self.longest = largest

    def find(self, block_table: torch.Tensor, tokens: slice) -> LongPrompt:
        """A prompt of `tokens` of a step; `block_table` int32 `[max_blocks]` is its row's."""
        count = tokens.stop - tokens.start
        length = padded_len(count)
        blocks = torch.zeros(length // self._block_size, dtype=torch.int64, device=block_table.device)
        own = -(-count // self._block_size)
        blocks[:own] = block_table[:own]
        return LongPrompt(tokens, blocks, length)

    def run(self, prompt: LongPrompt, q: torch.Tensor, cache: LayerCache, scaling: float, out: torch.Tensor) -> None:
        """Attend with the prompt's tokens of q `[H, T, D]`, whose keys are in the cache; into out `[T, H, D]`."""
        count = prompt.num_tokens
        keys, values = self._gather(cache.k, prompt), self._gather(cache.v, prompt)
        queries = q[:, prompt.tokens]
        if count < prompt.padded_len:
            queries = q.new_zeros(prompt.padded_len, q.shape[0], q.shape[2]).transpose(0, 1)
            queries[:, :count] = q[:, prompt.tokens]
        found = attend(queries[None], keys[None], values[None], scaling)
        out[prompt.tokens] = found[0, :, :count].transpose(0, 1)

    def _gather(self, cache: torch.Tensor, prompt: LongPrompt) -> torch.Tensor:
        """Keys or values `[KV, padded_len, D]`, zero where padded: a weight of zero would make no number of a NaN."""
        heads, slots, dim = cache.shape
        if prompt.rows is None:
            starts = torch.arange(heads, device=cache.device) * (slots // self._block_size)
            prompt.rows = (starts[:, None] + prompt.blocks).flatten()
        # Whole rows of a matrix: torch gathers them many times as fast as slices of a head each.
        blocks = cache.view(-1, self._block_size * dim).index_select(0, prompt.rows)
        found = blocks.view(heads, prompt.padded_len, dim)
        found[:, prompt.num_tokens :] = 0
        return found
