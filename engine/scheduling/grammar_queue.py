"""Constraints in the engine: requests that wait for theirs to be compiled, and sequences that follow theirs."""

import time
from itertools import takewhile
from typing import TYPE_CHECKING

from engine.errors import RequestError
from engine.grammar.grammar import Grammar
from engine.messages import AddRequest
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.sequence import Sequence

if TYPE_CHECKING:
    from engine.grammar.compiler import GrammarCompiler
    from engine.grammar.results import Result


class GrammarQueue:
    """What stands between `add` and the scheduler's queue for constrained requests. Others never wait for these."""

    def __init__(self, compiler: "GrammarCompiler | None") -> None:
        self._compiler = compiler
        self._requests: dict[int, tuple[AddRequest, float]] = {}
        """With when each came, by `time.perf_counter`."""

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._requests

    def start(self) -> None:
        """Prepare for the first request."""
        if self._compiler is not None:
            self._compiler.start()

    def close(self) -> None:
        """End the compiler's thread and process."""
        if self._compiler is not None:
            self._compiler.close()
            self._compiler = None

    def add(self, request: AddRequest) -> None:
        """Have a request's constraint compiled. Raises `RequestError` where that cannot be tried."""
        params = request.params
        if self._compiler is None:
            param = params.constraint.param if params.constraint is not None else "max_reasoning_tokens"
            raise RequestError(f"{param}: constraints are not available for this model", param=param)
        self._compiler.submit(request.request_id, params.constraint, params.reasoning_budget, tenant=request.tenant)
        self._requests[request.request_id] = request, time.perf_counter()

    def drop(self, request_id: int) -> bool:
        """Forget a request; whether it was here."""
        if self._requests.pop(request_id, None) is None:
            return False
        assert self._compiler is not None
        self._compiler.cancel(request_id)
        return True

    def collect(self) -> "list[tuple[AddRequest, Result, float]]":
        """The requests whose constraint is compiled, or was refused, since the last call, and when each came."""
        if self._compiler is None or not self._requests:
            return []
        found = []
        for key, result in self._compiler.collect():
            request, came_at = self._requests.pop(key)
            found.append((request, result, came_at))
        return found


def follow_grammar(sequence: Sequence, grammar: Grammar, blocks: BlockManager) -> list[int]:
    """Let a grammar read its sequence's newest token, and append what it forces next; the forced tokens.

    They are what sampling would give, one by one, so all of them are computed in the next step together: as many as
    leave room for one more token, if there are blocks for them. One that may end the answer is left to sampling, and
    with log-probabilities asked for all are. Raises `GrammarError`.
    """
    grammar.accept(sequence.token_ids[-1])
    params = sequence.params
    room = min(params.max_tokens - sequence.num_generated, sequence.max_len - sequence.num_tokens) - 1
    if room < 1 or params.logprobs is not None or grammar.is_finished:
        return []
    ending = {*params.stop_token_ids, *sequence.eos_token_ids}
    forced = list(takewhile(lambda token_id: token_id not in ending, grammar.forced_tokens()[:room]))
    if not forced or not blocks.grow(sequence, sequence.num_tokens + len(forced)):
        return []
    for token_id in forced:
        grammar.accept(token_id)
    sequence.token_ids += forced
    return forced
