"""API keys: default-deny, compared in constant time, and the salt that keeps tenants' cached prompts apart."""

import hashlib
import hmac
from collections.abc import Iterable

from engine.errors import ConfigError

_SALT_PURPOSE = b"headrace prefix cache "


class Keys:
    """The keys this server accepts; with none, everybody may enter."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises `ConfigError` for a key that no HTTP client could send."""
        keys = list(keys)
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(
                    "an API key must be printable ASCII without spaces", hint="check --api-key and HEADRACE_API_KEY"
                )
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def salt_for(self, authorization: bytes | None) -> bytes | None:
        """The prefix-cache salt of the key in an `Authorization` header, None if there is no valid key.

        Every key is compared, whichever matches, so that the time taken tells nothing.
        """
        if not self._digests:
            return b""
        scheme, _, given = (authorization or b"").partition(b" ")
        digest = _digest(given.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            return None
        return hashlib.sha256(_SALT_PURPOSE + digest).digest()[:16]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
