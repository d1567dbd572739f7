"""What a model that sees does with the images of a step: encodes them, keeps what it needs, puts them in their places.

Two kinds of models: in most, tokens stand for an image and get its embeddings; in those with layers of cross attention,
tokens look at images, whose keys and values then belong to the memory of the sequences that run.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from engine.device.host_batch import HostBatch
from engine.device.kv_cache import memory_budget
from engine.device.ranks import Ranks
from engine.execution.cross_images import CrossImages
from engine.execution.footprint import peak_bytes
from engine.execution.image_cache import ImageCache
from engine.execution.slices import Slices
from engine.models.cross_attention import LookAt, replace_cross_attention
from engine.models.image_encoder import ImageEncoder
from engine.models.loaded import LoadedModel
from engine.models.vision import family_of, make_encoder
from engine.models.vision_patches import replace_patches
from engine.models.vision_windows import replace_windows
from engine.scheduling.image_shelf import ImageShelf
from engine.scheduling.images import PromptImage, looks_of, rows_of
from engine.scheduling.scheduled import Scheduled
from engine.sizing.towers import embeddings_room, looks_room
from engine.weights.seeing import PROCESSING_FILES, says_how

logger = logging.getLogger(__name__)

SHARED_TYPES = frozenset({"qwen2_5_vl", "mllama", "gemma3"})
"""Models whose images can be shared among ranks: rank 0 encodes them without the embeddings of tokens, which are
divided, and gives the decoder nothing but embeddings."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step's images are to its forward pass."""

    embedded: torch.Tensor | None = None
    """`[T, hidden]`, in the place of the token ids."""
    looks: list[LookAt] = field(default_factory=list)
    of_decoder: dict[str, Any] = field(default_factory=dict)
    """What else the decoder itself is given."""


@contextmanager
def given(decoder: torch.nn.Module, inputs: dict[str, Any]) -> Iterator[None]:
    """Inside, a decoder is called with these inputs too, which the model around it does not pass on."""
    if not inputs:
        yield
        return
    handle = decoder.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | inputs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What encoding the largest image holds of a GPU's memory beside the model; nothing on a CPU."""

    peak: int
    """At most."""
    between: int
    """While steps run between its slices, at most."""


class Sight:
    """The images of one model; made by `make_sight`."""

    def __init__(self, encoder: ImageEncoder, loaded: LoadedModel, context: int, ranks: Ranks | None = None) -> None:
        """Puts our attention across and in windows, and our product of patches, in the place of transformers'.

        Images larger than the `context` are refused. Of `ranks` only the first encodes images and keeps them; the
        others get what it has made of a step.
        """
        self._ranks = ranks
        self.encoder = encoder
        self._context = context
        self._cross_layers = replace_cross_attention(loaded.model, ranks) if encoder.crosses else []
        replace_windows(loaded.model)
        replace_patches(loaded.model)
        self._model: Any = loaded.model
        self._dtype: torch.dtype = loaded.model.dtype
        self._slices: Slices | None = None
        self._held: dict[bytes, tuple[torch.Tensor, Scheduled]] = {}
        """Embeddings for the next step, whatever there is room for, and who is going to take it."""
        self.shelf: ImageShelf | None = None
        """Of a model whose tokens look at images."""
        self.images: ImageCache | CrossImages
        self.num_bytes = 0
        """What images may take of the device's memory for good."""

    @property
    def crosses(self) -> bool:
        """Whether tokens look at images instead of standing for them."""
        return bool(self._cross_layers)

    def allocate(self, reserved: int) -> None:
        """Set memory aside, where `reserved` bytes of what is free belong to others."""
        left = memory_budget("auto", self.encoder.device, reserved)
        if self._cross_layers:
            unit = self.encoder.states_of_unit * sum(layer.bytes_per_state(self._dtype) for layer in self._cross_layers)
            units = looks_room(left, unit, self.encoder.max_units)
            self.shelf = ImageShelf(units, self.encoder.num_units)
            self.images = CrossImages(self.encoder.encode, self._cross_layers, self.shelf)
            self.num_bytes = units * unit
        else:
            largest = self.encoder.example(self._context).length * self.encoder.bytes_per_token(self._dtype)
            self.num_bytes = embeddings_room(left, largest)
            self.images = ImageCache(self.encoder.encode, self.num_bytes)

    def rehearse(self) -> Rehearsed:
        """Encode a small image, so that no request waits for what a first one takes; and on CUDA the largest.

        Raises what the tower raises.
        """
        small = self.encoder.encode(self.encoder.example(None))
        width = self.encoder.bytes_per_token(small.dtype) // small.dtype.itemsize
        if not self.crosses and small.shape[1] != width:
            raise ValueError(f"the tower gives {small.shape[1]} numbers a token, and the decoder takes {width}")
        largest = self.encoder.example(self._context)
        held = 0

        def encode() -> None:
            nonlocal held
            before = torch.cuda.memory_allocated(self.encoder.device)
            while self._sliced.go_on(largest.digest, partial(self.encoder.encode, largest), 0.0) is None:
                held = max(held, torch.cuda.memory_allocated(self.encoder.device) - before)

        peak = peak_bytes(encode, self.encoder.device)
        return Rehearsed(peak, held)

    def try_rehearsal(self, agree: Callable[[bool], bool]) -> Rehearsed | str:
        """`rehearse`, or what failed; then no rank encodes images."""
        found, failure = None, "on another rank"
        try:
            found = self.rehearse()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a checkpoint whose tower is not as its family's
            logger.exception("no image can be encoded")
            failure = type(error).__name__
        return found if agree(found is not None) and found is not None else failure

    def encode(self, row: Scheduled, seconds: float | None = None) -> bool:
        """Encode the images that a row has to do with, for about so many seconds; whether all are there.

        None: until they are. 0: not at all.
        """
        for image in self._wanted(row):
            found = self._find(image)
            if found is None:
                found = self._make(image, seconds) if seconds != 0 else None
                if found is None:
                    return False
                self.images.keep(image, found)
                self._held = {digest: held for digest, held in self._held.items() if held[1].is_current}
            if not self.crosses:
                # Also what was there: what is encoded for another row may take its room before the step.
                self._held[image.digest] = found, row
        return True

    def _find(self, image: PromptImage) -> torch.Tensor | None:
        held = self._held.get(image.digest)
        return self.images.find(image) if held is None else held[0]

    def rest(self) -> None:
        """Drop what is being encoded, and what was for a step that has not come."""
        self._held.clear()
        if self._slices is not None:
            self._slices.abandon()

    def forget(self) -> int:
        """Drop all that is kept of images, which nobody may be looking at; bytes that they have no more."""
        self.rest()
        self.images.forget()
        return self.num_bytes

    def _wanted(self, row: Scheduled) -> list[PromptImage]:
        images = row.sequence.images
        if self.crosses:
            return [image for look in looks_of(images, row.first, row.end, 0) for image in look.images]
        return [rows.image for rows in rows_of(images, row.first, row.end, 0)]

    def _make(self, image: PromptImage, seconds: float | None) -> torch.Tensor | None:
        if seconds is None:
            return self.images.make(image)
        return self._sliced.go_on(image.digest, partial(self.images.make, image), seconds)

    @property
    def _sliced(self) -> Slices:
        """Made when it is first needed: whatever is done to a model at load is done then."""
        if self._slices is None:
            self._slices = Slices(self._parts_of_tower(), self.encoder.device)
        return self._slices

    def _parts_of_tower(self) -> list[torch.nn.Module]:
        """Modules that do the work of encoding: the smallest there are, on a GPU layers, which take a moment there."""
        of_text = set(self._model.get_decoder().modules())
        roots = [self._model, *self._cross_layers]
        modules = [module for root in roots for module in root.modules()]
        if self.encoder.device.type == "cuda":
            layers = [layer for module in modules if isinstance(module, torch.nn.ModuleList) for layer in module]
            return [layer for layer in dict.fromkeys(layers) if layer not in of_text]
        leaves = [module for module in modules if not list(module.children())]
        projections = {module for layer in self._cross_layers for module in (layer.key, layer.value)}
        return [module for module in dict.fromkeys(leaves) if module not in of_text or module in projections]

    def see(self, host: HostBatch, embed: Callable[[], torch.Tensor]) -> Seen:
        """What a step's images are to its forward pass; `embed` gives the embeddings `[T, hidden]` of its tokens.

        Not during an attention step: towers attend too, in their own way.
        """
        if self._ranks is not None:
            return self._see_together(self._ranks, host, embed)
        return self._see(host, embed)

    def _see_together(self, ranks: Ranks, host: HostBatch, embed: Callable[[], torch.Tensor]) -> Seen:
        if self.crosses:
            looks = [LookAt(slice(look.row, look.row + look.length), []) for look in host.looks]
            return self._see(host, embed) if ranks.leads else Seen(looks=looks)
        if not host.sees_images:
            return Seen()
        seen = self._see(host, embed) if ranks.leads else Seen(embed())
        assert seen.embedded is not None and not seen.of_decoder, "families that give more are not divided"
        ranks.share(seen.embedded)
        return seen

    def _see(self, host: HostBatch, embed: Callable[[], torch.Tensor]) -> Seen:
        if isinstance(self.images, CrossImages):
            return Seen(looks=[self.images.look(look) for look in host.looks])
        if not host.images:
            return Seen()
        embedded = embed()
        deep = self.images.put_into(embedded, host, {digest: found for digest, (found, _) in self._held.items()})
        self._held.clear()
        return Seen(embedded, of_decoder=self.encoder.deep_inputs(deep, host.images, len(embedded)))


def make_sight(loaded: LoadedModel, context: int, ranks: Ranks | None = None) -> Sight | None:
    """None for a model that does not see, or in a way that is not known here (`blindness`)."""
    encoder = None if blindness(loaded, ranks) is not None else make_encoder(loaded)
    return None if encoder is None else Sight(encoder, loaded, context, ranks)


def blindness(loaded: LoadedModel, ranks: Ranks | None = None) -> str | None:
    """What the operator should know of a model that could see and does not."""
    config = loaded.hf_config
    if not hasattr(config, "vision_config"):
        return None
    if ranks is not None and config.model_type not in SHARED_TYPES:
        return f"it answers text alone: images of models of the type {config.model_type} are not taken by several ranks"
    if family_of(config) is not None:
        if says_how(loaded.directory):
            return None
        return f"it answers text alone: there is no {PROCESSING_FILES[0]}, which says how images are cut for it"
    return f"it answers text alone: images of models of the type {config.model_type} are not taken here"
