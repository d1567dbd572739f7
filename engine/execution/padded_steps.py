"""Steps that are padded to one of a few shapes, so that a device can repeat them by itself: which go to which."""

from functools import partial

import torch

from engine.cache import Progress
from engine.device.forward_batch import BatchBuilder
from engine.device.host_batch import HostBatch
from engine.execution.dependent import CONTEXT, Put
from engine.execution.graphs import DecodeGraphs, Forward
from engine.execution.mixed_graphs import MixedGraphs
from engine.execution.recording import Recorder
from engine.sizing.steps import StepForms


class PaddedSteps:
    """Both kinds of them. `forward` computes the logits of a batch."""

    def __init__(
        self,
        builder: BatchBuilder,
        forward: Forward,
        recorder: Recorder,
        forms: StepForms,
        *,
        max_context: int,
        reads_lengths: bool,
        device: torch.device,
    ) -> None:
        """See `MixedGraphs`."""
        self.recorder = recorder
        self.decoding = DecodeGraphs(builder, forward, recorder, forms.decoding, max_context=max_context, device=device)
        self.mixed = MixedGraphs(
            builder, forward, recorder, forms.mixed, max_context=max_context, reads_lengths=reads_lengths
        )

    def run(self, host: HostBatch) -> torch.Tensor | None:
        """Logits `[R, V]` of the rows that sample, which the next step overwrites; None for a step of no such form."""
        if host.only_decodes:
            return self.decoding.run(host)
        size = self.mixed.size_for(host)
        return None if size is None else self.mixed.run(host, size)

    def record(self, progress: Progress) -> None:
        """Run and record all of them, where that is not lazy."""
        self.recorder.warm_up((self.mixed, self.decoding), progress)

    def forget(self) -> None:
        """Drop what is recorded, until it is recorded anew."""
        self.mixed.forget()
        self.decoding.forget()

    @property
    def put_one(self) -> Put:
        """A step of one row behind many tokens: see `engine.execution.dependent`."""
        return partial(self.decoding.padded, 1, context=CONTEXT)
