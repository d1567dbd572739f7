"""A step as a message to the other ranks, and back."""

from dataclasses import astuple

import numpy as np

from engine.device.host_batch import HostBatch, Span, TableChanges
from engine.ranks.messages import Forward
from engine.scheduling.images import Look


def message_of(host: HostBatch) -> Forward:
    """The message for a step."""
    return Forward(
        token_ids=_bytes(host.token_ids),
        unread=host.unread,
        unread_slots=host.unread_slots,
        positions=_bytes(host.positions),
        directions=host.positions.ndim,
        slot_mapping=_bytes(host.slot_mapping),
        slots=host.slots.tolist(),
        logits_index=_bytes(host.logits_index),
        query_lens=host.query_lens,
        context_lens=host.context_lens,
        num_decodes=host.num_decodes,
        num_samples=host.num_samples,
        places=_bytes(host.changes.places),
        blocks=_bytes(host.changes.blocks),
        spans=[astuple(span) for span in host.spans],
        sees_images=host.sees_images,
        looks=[(look.row, look.length) for look in host.looks],
    )


def host_of(step: Forward) -> HostBatch:
    """The step that a message tells of."""
    positions = _numbers(step.positions)
    return HostBatch(
        token_ids=_numbers(step.token_ids),
        unread=step.unread,
        unread_slots=step.unread_slots,
        positions=positions if step.directions == 1 else positions.reshape(3, -1),
        slot_mapping=_numbers(step.slot_mapping),
        slots=np.asarray(step.slots),
        logits_index=_numbers(step.logits_index),
        query_lens=step.query_lens,
        context_lens=step.context_lens,
        num_decodes=step.num_decodes,
        num_samples=step.num_samples,
        changes=TableChanges(_numbers(step.places), _numbers(step.blocks)),
        spans=[Span(*span) for span in step.spans],
        sees_images=step.sees_images,
        looks=[Look(row, length, ()) for row, length in step.looks],
    )


def _bytes(numbers: np.ndarray) -> bytes:
    return numbers.astype(np.int64, copy=False).tobytes()


def _numbers(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.int64).copy()
