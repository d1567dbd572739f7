"""What rank 0 tells the others, and what they tell it."""

import msgspec

from engine.config import EngineConfig


class Begin(msgspec.Struct, tag=True, frozen=True):
    """Who a process is, and what it is to load."""

    config: EngineConfig
    rank: int
    directory: str
    """Where the ranks meet."""


class Forward(msgspec.Struct, tag=True, frozen=True):
    """A step: a `HostBatch` without what only rank 0 needs (`engine.ranks.steps`). Arrays are the bytes of int64."""

    token_ids: bytes
    unread: list[int]
    unread_slots: list[int]
    positions: bytes
    directions: int
    """Of `positions`."""
    slot_mapping: bytes
    slots: list[int]
    logits_index: bytes
    query_lens: list[int]
    context_lens: list[int]
    num_decodes: int
    num_samples: int
    places: bytes
    blocks: bytes
    spans: list[tuple[int, int, int, int]]
    sees_images: bool
    looks: list[tuple[int, int]]
    """Without the images, which rank 0 alone has."""


class Wipe(msgspec.Struct, tag=True, frozen=True):
    """Zero the content of blocks."""

    blocks: list[int]
    block_size: int


class PutAway(msgspec.Struct, tag=True, frozen=True):
    """Put the model away."""


class BringBack(msgspec.Struct, tag=True, frozen=True):
    """Bring it back."""


class End(msgspec.Struct, tag=True, frozen=True):
    """End the process."""


class Stage(msgspec.Struct, tag=True, frozen=True):
    """How far a rank is with loading."""

    stage: str
    fraction: float | None


class Arrived(msgspec.Struct, tag=True, frozen=True):
    """A rank has read its part (`Ranks.meet`)."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """A rank has loaded its part and does what it is told."""


class Alive(msgspec.Struct, tag=True, frozen=True):
    """A rank is not stopped. Sent once a second, whatever else it does."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """A rank cannot go on, and ends."""

    message: str
    hint: str | None = None
    is_everybodys: bool = False
    """Whether it is the same for all ranks, so that it matters little which of them found it first."""


Order = Begin | Forward | Wipe | PutAway | BringBack | End
Report = Stage | Arrived | Ready | Alive | Failed

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
