"""Which requests this model can serve at all, and the sequences of those it can: before anything is queued."""

import dataclasses
import os

from engine.errors import RequestError
from engine.grammar.grammar import Grammar
from engine.messages import AddRequest
from engine.noise import derive_seed
from engine.scheduling.block_manager import root_digest
from engine.scheduling.images import Placement, PromptImage
from engine.scheduling.sequence import Sequence

MAX_CHOICES = 128
MAX_PRIORITY = 1000


def check_request(
    request: AddRequest, *, vocab_size: int, context: int, capacity: int, image_token: int | None = None
) -> None:
    """Raise RequestError for the first thing that cannot be served as asked.

    `vocab_size` is the width of the logits, `context` the most tokens of one sequence, prompt included, and `capacity`
    the most that can be computed. Where images stand there may be an `image_token` that has no logit.
    """
    prompt = request.prompt_token_ids
    request.params.check(vocab_size)
    if not prompt:
        raise RequestError("the prompt has no tokens", param="messages")
    if not 1 <= request.n <= MAX_CHOICES:
        raise RequestError(f"n must be between 1 and {MAX_CHOICES}, got {request.n}", param="n")
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise RequestError(
            f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}, got {request.priority}", param="priority"
        )
    if not request.weight > 0:
        raise RequestError(f"weight must be more than 0, got {request.weight}")
    if not all(0 <= token < vocab_size for token in _text_of(request, image_token)):
        raise RequestError(f"the prompt has a token outside the vocabulary of {vocab_size}", param="messages")
    if len(prompt) > (context - 1 if request.params.max_tokens else min(context, capacity)):
        reserved = ", of which at least one is for the answer" if request.params.max_tokens else ""
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; this model's context is {context} tokens{reserved}",
            param="messages",
            code="context_length_exceeded",
        )


def _text_of(request: AddRequest, image_token: int | None) -> list[int]:
    """The tokens of a prompt but for `image_token` where images stand."""
    prompt = request.prompt_token_ids
    if image_token is None or not request.images:
        return prompt
    placed = {span.start + number for span in request.images for number in range(span.length)}
    return [token for number, token in enumerate(prompt) if token != image_token or number not in placed]


def make_sequences(
    request: AddRequest,
    grammar: Grammar | None,
    *,
    context: int,
    eos_token_ids: frozenset[int],
    images: tuple[PromptImage, ...] = (),
    placement: Placement | None = None,
    arrived_at: float = 0.0,
) -> list[Sequence]:
    """One for each choice. They differ in their seeds; all but the first wait for the first to compute the prompt."""
    prompt, params = request.prompt_token_ids, request.params
    seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little", signed=True)
    digest = root_digest(request.salt)
    sequences: list[Sequence] = []
    for index in range(request.n):
        sequence = Sequence(
            request_id=request.request_id,
            index=index,
            prompt_token_ids=prompt,
            # All choices have the same prompt, so its scores come once.
            params=dataclasses.replace(params, prompt_logprobs=None) if sequences else params,
            seed=derive_seed(seed, index),
            max_len=min(len(prompt) + params.max_tokens, context),
            eos_token_ids=eos_token_ids,
            root_digest=digest,
            leader=sequences[0] if sequences else None,
            priority=request.priority,
            tenant=request.tenant,
            weight=request.weight,
            grammar=None if grammar is None else grammar.copy(),
            images=images,
            placement=placement,
            arrived_at=arrived_at,
        )
        sequences.append(sequence)
    return sequences
