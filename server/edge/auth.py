"""API keys: default-deny, compared in constant time, their rights and limits, and the salt that keeps tenants' prompts
apart.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from engine.errors import ConfigError
from server.config.keys_file import ALL_RIGHTS, KeyEntry, Right
from server.edge.quotas import Account

_SALT_PURPOSE = b"headrace prefix cache "
_NO_KEY = secrets.token_bytes(32)
"""In the place of a digest where no key is given: no file can hold it."""
_OF_PLAIN_KEYS: frozenset[Right] = frozenset({"use", "metrics"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who a request comes from."""

    name: str = ""
    """What the operator calls the key; nothing where the server asks for none."""
    salt: bytes = b""
    """Separates what is cached of this caller's prompts from that of others."""
    rights: frozenset[Right] = ALL_RIGHTS
    models: tuple[str, ...] | None = None
    """Names, aliases and patterns of the models it may use; None for all."""
    weight: float = 1.0
    """Its share of a model that several callers wait for."""
    lowest_priority: int | None = None
    """The most urgent that its requests may be; None for any."""
    account: Account = field(default_factory=Account)

    def may(self, right: Right) -> bool:
        """Whether it has a right; those who may load and unload models have all."""
        return right in self.rights or "admin" in self.rights


class Keys:
    """The keys this server accepts; with none, everybody may enter, and who is on this machine may load and unload."""

    def __init__(
        self,
        keys: Iterable[str] = (),
        admin_keys: Iterable[str] = (),
        entries: Iterable[KeyEntry] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`admin_keys` may do all that the others may, and load and unload models. `entries` are those of a file.

        Where there is a file a key is needed, even if it has none. Raises `ConfigError` for a key that no HTTP client
        could send, and for one that is given here and in the file.
        """
        self.needed = False
        """Whether requests need a key."""
        self._clock = clock
        self._num_sharing = 0
        """See `are_several`."""
        self._plain = {_checked(key): Caller(rights=_OF_PLAIN_KEYS) for key in keys}
        admins = {_checked(key): Caller(rights=ALL_RIGHTS) for key in admin_keys}
        self._operators = frozenset(admins.keys() - self._plain.keys())
        self._plain |= admins
        self._plain = {
            digest: Caller(name=f"api-key[{number}]", salt=_salt(digest), rights=caller.rights)
            for number, (digest, caller) in enumerate(self._plain.items())
        }
        self._callers: dict[bytes, Caller] = {}
        self._accounts: dict[bytes, Account] = {}
        self.replace(entries)

    def replace(self, entries: Iterable[KeyEntry] | None) -> None:
        """These are the keys of the file from now on. What a key has used of its limits stays used.

        Raises `ConfigError`, and changes nothing, if one of them is given on the command line too.
        """
        found = {entry.digest: entry for entry in entries or ()}
        if twice := next((entry.name for digest, entry in found.items() if digest in self._plain), None):
            raise ConfigError(f"the key {twice} of the keys file is also one of --api-key or --admin-api-key")
        callers = dict(self._plain)
        for digest, entry in found.items():
            account = self._accounts.setdefault(digest, Account(clock=self._clock))
            account.limit(entry)
            callers[digest] = Caller(
                name=entry.name,
                salt=_salt(digest),
                rights=entry.rights,
                models=entry.models,
                weight=entry.weight,
                lowest_priority=entry.lowest_priority,
                account=account,
            )
        # A key that is gone may come back; what it has used is then still used.
        self._accounts = {
            digest: account for digest, account in self._accounts.items() if digest in found or not account.is_fresh
        }
        self._callers = callers
        self._num_sharing = sum(
            "use" in who.rights and digest not in self._operators for digest, who in callers.items()
        )
        self.needed = bool(self._plain) or entries is not None

    @property
    def names(self) -> list[str]:
        """What the keys are called."""
        return [caller.name for caller in self._callers.values()]

    def entries_without_model(self, meant_by: Callable[[str], Collection[str]]) -> dict[str, list[str]]:
        """The entries among each key's models that mean none, by the key's name; `meant_by` tells what one means."""
        found = {
            who.name: [entry for entry in who.models or () if not meant_by(entry)] for who in self._callers.values()
        }
        return {name: entries for name, entries in found.items() if entries}

    def are_several(self) -> bool:
        """Whether more than one key asks models, so that what there is must be shared among them.

        Keys that are given as `admin_keys` alone do not count, nor those that have not the right `use` by itself: room
        for an operator, or for what reads metrics, would be taken from the only key that asks.
        """
        return self._num_sharing > 1

    def caller(self, authorization: bytes | None, client: str | None) -> Caller | None:
        """Who sends this `Authorization` header from the address `client`; None if a key is needed and it has none.

        Every key is compared, whichever matches, so that the time taken tells nothing.
        """
        if not self.needed:
            return Caller(rights=ALL_RIGHTS if _is_loopback(client) else _OF_PLAIN_KEYS)
        digest = _given(authorization)
        return next(iter([who for known, who in self._callers.items() if hmac.compare_digest(known, digest)]), None)


def _checked(key: str) -> bytes:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            "an API key must be printable ASCII without spaces",
            hint="check --api-key, --admin-api-key, HEADRACE_API_KEY and HEADRACE_ADMIN_API_KEY",
        )
    return digest_of(key)


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def _salt(digest: bytes) -> bytes:
    return hashlib.sha256(_SALT_PURPOSE + digest).digest()[:16]


def _given(authorization: bytes | None) -> bytes:
    """The digest of the key in an `Authorization` header, or what is no key's."""
    scheme, _, given = (authorization or b"").partition(b" ")
    given = given.strip()
    return hashlib.sha256(given).digest() if given and scheme.lower() == b"bearer" else _NO_KEY


def _is_loopback(client: str | None) -> bool:
    try:
        return ipaddress.ip_address(client or "").is_loopback
    except ValueError:
        return False
