"""What has been compiled or refused, remembered within a bound."""

from collections import OrderedDict

from engine.errors import RequestError
from engine.grammar.grammar import Compiled

Result = Compiled | RequestError


class GrammarCache:
    """Results by digest, the least lately used dropped when their sizes pass the bound."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[Result, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes) -> Result | None:
        """A result that is known."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        self._entries.move_to_end(digest)
        return entry[0]

    def put(self, digest: bytes, result: Result, size: int) -> None:
        """Remember a result of about `size` bytes."""
        if digest in self._entries:
            self.num_bytes -= self._entries.pop(digest)[1]
        self._entries[digest] = (result, size)
        self.num_bytes += size
        while self.num_bytes > self._max_bytes and len(self._entries) > 1:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.num_bytes -= dropped
