"""What the results of a step make of its sequences: scores noted, a token appended, an end."""

from engine.execution.flight import Landed, Runner
from engine.grammar.grammar import GrammarError
from engine.messages import TokenLogprobs
from engine.sampling.sampler import Sampled
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.grammar_queue import follow_grammar
from engine.scheduling.outbox import Outbox
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence
from engine.scheduling.stop import finish_reason


class Landing:
    """Takes in what was computed for one sequence after another, and ends those whose time has come."""

    def __init__(
        self, runner: Runner, scheduler: Scheduler, outbox: Outbox, sequences: dict[int, list[Sequence]]
    ) -> None:
        """`sequences` are the engine's own, by request: those whose last sequence ends are taken out."""
        self._runner = runner
        self._scheduler = scheduler
        self._blocks: BlockManager = scheduler.blocks
        self._outbox = outbox
        self._sequences = sequences

    def land(self, row: Scheduled, landed: Landed) -> None:
        """Give a row's sequence its scores and its token. Raises EngineDeadError where a rank has ended."""
        sequence = row.sequence
        prefilled = sequence.num_prefilled_tokens
        self._scheduler.commit(row)
        self._outbox.num_prompt_tokens += sequence.num_prefilled_tokens - prefilled
        if (failure := landed.failure(row)) is not None:
            self.fail(sequence, failure)
        elif not landed.is_finite(row):
            self._discard(sequence)
            self.fail(sequence, "the model computed no finite logits for this request")
        else:
            self._note_scores(sequence, landed.scores.get(row) or [], row.scored)
            if row.end == sequence.num_tokens:
                self._advance(sequence, landed.sampled, landed.positions.get(row))

    def publish(
        self, sequence: Sequence, token_ids: list[int], logprobs: TokenLogprobs | None, reason: str | None
    ) -> None:
        """Tell whoever asked of new tokens, and of the sequence's end if it has a reason for one."""
        self._outbox.generated(sequence, token_ids, logprobs, reason)
        if reason:
            self.forget(sequence)

    def fail(self, sequence: Sequence, message: str) -> None:
        """End a sequence with an error."""
        self._scheduler.finish(sequence, "error")
        self._outbox.failed(sequence, message)
        self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Drop a request whose last sequence has ended."""
        sequences = self._sequences.get(sequence.request_id)
        if sequences is not None and all(s.is_finished for s in sequences):
            del self._sequences[sequence.request_id]

    def _note_scores(self, sequence: Sequence, scores: list[TokenLogprobs], scored: range) -> None:
        if scored:
            sequence.num_scored_tokens = scored.stop
            self._outbox.scored(sequence, scores)

    def _advance(self, sequence: Sequence, sampled: Sampled, position: int | None) -> None:
        """Append the token sampled at `position`, None for none; end the sequence if its time has come."""
        if sequence.num_generated == 0:
            self._outbox.num_cached_tokens += sequence.num_cached_tokens
        if position is None:
            assert sequence.params.max_tokens == 0
            self._scheduler.finish(sequence, "length")
            self.publish(sequence, [], None, "length")
            return
        token_ids = [sampled.token_ids[position]]
        sequence.token_ids += token_ids
        reason = finish_reason(sequence)
        if reason != "stop" and sequence.grammar is not None:
            try:
                forced = follow_grammar(sequence, sequence.grammar, self._blocks)
            except GrammarError as error:
                self.fail(sequence, str(error))
                return
            token_ids += forced
            reason = "stop" if sequence.grammar.is_finished else reason
        if reason:
            self._scheduler.finish(sequence, reason)
        self.publish(sequence, token_ids, sampled.logprobs[position], reason)

    def _discard(self, sequence: Sequence) -> None:
        """Wipe the blocks of a sequence that holds NaNs, so that no later tenant can meet them."""
        self._runner.wipe_blocks(self._blocks.discard(sequence), self._blocks.block_size)
