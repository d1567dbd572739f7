"""What has happened to requests and is to be told: outputs until they are taken, and the counters that go with them."""

from engine.constraint import Relaxed
from engine.errors import RequestError
from engine.messages import AddRequest, SequenceOutput, TokenLogprobs
from engine.scheduling.admission import MAX_CHOICES
from engine.scheduling.sequence import Sequence


class Outbox:
    """Collects the outputs of a step. Counters only grow."""

    def __init__(self) -> None:
        self.num_generated = self.num_aborted = self.num_failed = 0
        """Tokens, and sequences."""
        self.num_prompt_tokens = self.num_cached_tokens = 0
        """Prompt tokens computed, and those the prefix cache spared."""
        self._outputs: list[SequenceOutput] = []

    def __len__(self) -> int:
        return len(self._outputs)

    def take(self) -> list[SequenceOutput]:
        """All outputs since the last call."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def drop(self, request_ids: list[int], index: int | None) -> None:
        """Forget the outputs of requests, or of one choice of each."""
        self._outputs = [
            output
            for output in self._outputs
            if output.request_id not in request_ids or index not in (None, output.index)
        ]

    def accepted(
        self, request: AddRequest, relaxed: Relaxed | None = None, compile_seconds: float | None = None
    ) -> None:
        """The request is queued. Its constraint took so long to compile, and lacks what is `relaxed`."""
        self._outputs.append(SequenceOutput(request.request_id, relaxed=relaxed, compile_seconds=compile_seconds))

    def refused(self, request: AddRequest, error: RequestError, compile_seconds: float | None = None) -> None:
        """The request was never queued, though its constraint may have been tried for so long."""
        for index in range(min(max(request.n, 1), MAX_CHOICES)):
            self.num_failed += 1
            self._outputs.append(
                SequenceOutput(
                    request.request_id,
                    index,
                    finish_reason="error",
                    error=error.message,
                    error_param=error.param,
                    error_code=error.code,
                    compile_seconds=compile_seconds if index == 0 else None,
                )
            )

    def scored(self, sequence: Sequence, scores: list[TokenLogprobs]) -> None:
        """Some of a prompt's own log-probabilities."""
        self._outputs.append(SequenceOutput(sequence.request_id, sequence.index, prompt_logprobs=scores))

    def generated(
        self, sequence: Sequence, token_ids: list[int], logprobs: TokenLogprobs | None, reason: str | None
    ) -> None:
        """New tokens of a sequence, its end, or both. `logprobs` come with one token alone."""
        self.num_generated += len(token_ids)
        is_first = sequence.num_generated == len(token_ids)
        self._outputs.append(
            SequenceOutput(
                request_id=sequence.request_id,
                index=sequence.index,
                token_ids=token_ids,
                logprobs=None if logprobs is None else [logprobs],
                finish_reason=reason,
                num_cached_tokens=sequence.num_cached_tokens,
                queue_seconds=sequence.queue_seconds if is_first else None,
            )
        )

    def failed(self, sequence: Sequence, message: str) -> None:
        """A sequence has ended in an error."""
        self.num_failed += 1
        self._outputs.append(SequenceOutput(sequence.request_id, sequence.index, finish_reason="error", error=message))
