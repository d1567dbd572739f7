"""KV blocks: who owns which, which content can be hit again, which is free.

Every block is in exactly one of three states:

    free     nobody owns it, its content means nothing
    owned    in the block table of `ref_counts[block]` sequences
    cached   nobody owns it, but its digest can still be hit; evicted least recently used first

so `free + cached + owned == total` at every moment. Block 0 is never handed out: padding rows write there.

A full block is addressed by sha256 over its parent's digest, its token ids and the images they stand for; the root of
the chain is made from the salt, so tenants never share. On a hit token ids and images are compared as well: the digest
finds, the content decides.
"""

import hashlib
from array import array
from collections import OrderedDict, deque

from engine.scheduling.images import cut_in, marks
from engine.scheduling.sequence import Sequence

NULL_BLOCK = 0
Marks = tuple[tuple[bytes, int], ...]
"""Of the images in a block: which, and how far the block begins behind their first token."""
_NOTHING: tuple[tuple[int, ...], Marks] = ((), ())


def root_digest(salt: bytes) -> bytes:
    """Start of the digest chain for one tenant."""
    return hashlib.sha256(b"headrace:" + salt).digest()


def chain_digest(parent: bytes, token_ids: list[int], marks: Marks = ()) -> bytes:
    """Digest of a full block that follows the block of digest `parent`, with the marks of the images in it."""
    digest = hashlib.sha256(parent + array("q", token_ids).tobytes())
    for image, offset in marks:
        digest.update(b"image" + hashlib.sha256(image).digest() + array("q", [offset]).tobytes())
    return digest.digest()


class BlockManager:
    """Allocator and prefix cache over `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        assert num_blocks > 0 and block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._free: deque[int] = deque(range(1, num_blocks + 1))
        self._ref_counts = [0] * (num_blocks + 1)
        self._digests: list[bytes | None] = [None] * (num_blocks + 1)
        self._contents: list[tuple[tuple[int, ...], Marks]] = [_NOTHING] * (num_blocks + 1)
        self._by_digest: dict[bytes, int] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks without content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks nobody owns that can still be hit."""
        return len(self._evictable)

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now, evicting cached ones."""
        return len(self._free) + len(self._evictable)

    @property
    def num_owned(self) -> int:
        """Blocks in at least one block table."""
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, sequence: Sequence) -> int:
        """Give a sequence without blocks the cached blocks of its leading tokens; the tokens they hold.

        Tokens whose logits are still needed are left to compute: always the last, and those yet to be scored; and so
        are all of an image that must be computed whole.
        """
        assert not sequence.block_table
        found = self._hits(sequence)
        for block in found:
            self._acquire(block)
        sequence.block_table += found
        return len(found) * self.block_size

    def count_cached(self, sequence: Sequence) -> int:
        """The tokens that `match_prefix` would give a sequence now; changes nothing."""
        return len(self._hits(sequence)) * self.block_size

    def _hits(self, sequence: Sequence) -> list[int]:
        if not self.prefix_cache:
            return []
        spared = sequence.num_tokens - 1
        if sequence.num_scored_tokens < sequence.num_tokens_to_score:
            spared = sequence.num_scored_tokens
        limit = spared // self.block_size
        found: list[int] = []
        for position in range(limit):
            block = self._lookup(sequence, position)
            if block is None:
                break
            found.append(block)
        while found and cut_in(sequence.images, len(found) * self.block_size):
            found.pop()
        return found

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Extend the block table to hold `num_tokens` tokens; False, changing nothing, if too few are available."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        if missing > self.num_available:
            return False
        for _ in range(missing):
            sequence.block_table.append(self._allocate())
        return True

    def publish(self, sequence: Sequence, first_token: int, end: int) -> None:
        """Make the full blocks among the computed tokens from `first_token` to before `end` hittable.

        Where another block of equal content exists already, this one stays private.
        """
        if not self.prefix_cache:
            return
        for position in range(first_token // self.block_size, end // self.block_size):
            block = sequence.block_table[position]
            if self._digests[block] is None:
                digest = self._digest(sequence, position)
                if digest not in self._by_digest:
                    self._by_digest[digest] = block
                    self._digests[block] = digest
                    self._contents[block] = self._content(sequence, position)

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back. The end of a chain is forgotten before its beginning."""
        for block in reversed(sequence.block_table):
            assert self._ref_counts[block] > 0
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if self._digests[block] is None:
                    self._free.append(block)
                else:
                    self._evictable[block] = None
        sequence.block_table.clear()

    def discard(self, sequence: Sequence) -> list[int]:
        """Take all blocks back and let nobody find their content again; the blocks now free."""
        alone = [block for block in sequence.block_table if self._ref_counts[block] == 1]
        for block in sequence.block_table:
            if self._digests[block] is not None:
                self._forget(block)
        self.release(sequence)
        return alone

    def shrink(self, num_blocks: int) -> int:
        """Withdraw up to `num_blocks` available blocks for good, those of no content first; the number withdrawn."""
        taken = 0
        while taken < num_blocks and self.num_available:
            self._ref_counts[self._allocate()] = 0
            taken += 1
        self.num_blocks -= taken
        return taken

    def reset_cache(self) -> None:
        """Forget every cached block that nobody owns."""
        while self._evictable:
            block, _ = self._evictable.popitem(last=False)
            self._forget(block)
            self._free.append(block)

    def check(self, sequences: list[Sequence]) -> None:
        """Raise AssertionError unless books and block tables of all live `sequences` agree."""
        owners = [0] * len(self._ref_counts)
        for sequence in sequences:
            for block in sequence.block_table:
                owners[block] += 1
        assert owners == self._ref_counts, "reference counts differ from the block tables"
        assert owners[NULL_BLOCK] == 0, "the null block is owned"
        owned = sum(count > 0 for count in owners)
        free, cached = set(self._free), set(self._evictable)
        assert len(free) == len(self._free) and not free & cached, "a block is free twice"
        assert len(free) + len(cached) + owned == self.num_blocks, "free + cached + owned differs from the total"
        assert all(self._ref_counts[block] == 0 for block in free | cached), "a free block is owned"
        assert all(self._digests[block] is None for block in free), "a free block can be hit"
        assert {d: b for b, d in enumerate(self._digests) if d is not None} == self._by_digest

    def _content(self, sequence: Sequence, position: int) -> tuple[tuple[int, ...], Marks]:
        start = position * self.block_size
        end = start + self.block_size
        return tuple(sequence.token_ids[start:end]), marks(sequence.images, start, end)

    def _digest(self, sequence: Sequence, position: int) -> bytes:
        digests = sequence.block_digests
        while len(digests) <= position:
            parent = digests[-1] if digests else sequence.root_digest
            token_ids, images = self._content(sequence, len(digests))
            digests.append(chain_digest(parent, list(token_ids), images))
        return digests[position]

    def _lookup(self, sequence: Sequence, position: int) -> int | None:
        block = self._by_digest.get(self._digest(sequence, position))
        if block is None or self._contents[block] != self._content(sequence, position):
            return None
        return block

    def _acquire(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            del self._evictable[block]
        self._ref_counts[block] += 1

    def _allocate(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._evictable.popitem(last=False)
            self._forget(block)
        self._ref_counts[block] = 1
        return block

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        assert digest is not None
        del self._by_digest[digest]
        self._digests[block] = None
        self._contents[block] = _NOTHING
