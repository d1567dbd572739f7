"""Whose turn it is: tenants that wait for one model get equal shares of its tokens, or shares by their weights.

Each tenant has a count of the tokens that were computed for it, divided by its weight, and the next place goes to the
tenant with the smallest (Sheng et al., arXiv 2401.00588: the virtual token counter). Nothing has to be known of how
long an answer will be, and no place stays empty. A tenant that comes back begins where the least served of those that
wait stands, so that a pause saves up nothing; and what it took while nobody waited is held against it only in part.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar

MOST_OWED = 4096.0
"""How many tokens behind the least served tenant one may begin again."""


class Waiting(Protocol):
    """What waits for a tenant; in truth a `Sequence`."""

    tenant: bytes


W = TypeVar("W", bound=Waiting)


class Shares:
    """What each tenant was given, and how many of its sequences wait."""

    def __init__(self) -> None:
        self._served: dict[bytes, float] = {}
        self._waiting: Counter[bytes] = Counter()
        self._present: Counter[bytes] = Counter()

    @property
    def num_tenants(self) -> int:
        """Tenants that wait."""
        return len(self._waiting)

    def enter(self, tenant: bytes) -> None:
        """A sequence of this tenant is there from now on, until `leave`."""
        self._present[tenant] += 1

    def leave(self, tenant: bytes) -> None:
        """One of its sequences has ended. When none of any tenant is left, all begin anew."""
        self._drop(self._present, tenant)
        if not self._present:
            self._served.clear()

    def wait(self, tenant: bytes) -> None:
        """One of its sequences waits from now on, until `proceed`."""
        if tenant not in self._waiting:
            others = [self._served.get(other, 0.0) for other in self._waiting]
            others = others or [self._served.get(other, 0.0) for other in self._present if other != tenant]
            level = min(others, default=0.0)
            self._served[tenant] = min(max(self._served.get(tenant, 0.0), level), level + MOST_OWED)
        self._waiting[tenant] += 1

    def proceed(self, tenant: bytes) -> None:
        """One of its sequences waits no longer."""
        self._drop(self._waiting, tenant)

    def charge(self, tenant: bytes, num_tokens: int, weight: float) -> None:
        """So many tokens are computed for it."""
        self._served[tenant] = self._served.get(tenant, 0.0) + num_tokens / weight

    def first(self, waiting: Iterable[W]) -> W:
        """Whose turn it is of some that wait: the first one of the tenant that was given least."""
        found: dict[bytes, W] = {}
        for one in waiting:
            found.setdefault(one.tenant, one)
            if len(found) == len(self._waiting):
                break
        return min(found.values(), key=lambda one: self._served.get(one.tenant, 0.0))

    def check(self, waiting: Iterable[Waiting], present: Iterable[Waiting]) -> None:
        """Raise AssertionError if the books disagree with who is there."""
        assert self._waiting == Counter(one.tenant for one in waiting), "who waits is not in the books"
        assert self._present == Counter(one.tenant for one in present), "who is there is not in the books"

    def _drop(self, counts: Counter[bytes], tenant: bytes) -> None:
        counts[tenant] -= 1
        if not counts[tenant]:
            del counts[tenant]
