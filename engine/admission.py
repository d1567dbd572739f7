"""Which requests this model can serve at all: judged once, before anything is queued."""

from engine.errors import RequestError
from engine.messages import AddRequest

MAX_CHOICES = 128
MAX_PRIORITY = 1000


def check_request(request: AddRequest, *, vocab_size: int, context: int, capacity: int) -> None:
    """Raise RequestError for the first thing that cannot be served as asked.

    `vocab_size` is the width of the logits, `context` the most tokens of one sequence, prompt included, and `capacity`
    the most that can be computed.
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
    if not all(0 <= token < vocab_size for token in prompt):
        raise RequestError(f"the prompt has a token outside the vocabulary of {vocab_size}", param="messages")
    if len(prompt) > (context - 1 if request.params.max_tokens else min(context, capacity)):
        reserved = ", of which at least one is for the answer" if request.params.max_tokens else ""
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; this model's context is {context} tokens{reserved}",
            param="messages",
            code="context_length_exceeded",
        )
