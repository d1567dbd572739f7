"""API keys: default-deny, compared in constant time, their rights, and the salt that keeps tenants' prompts apart."""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from engine.errors import ConfigError

_SALT_PURPOSE = b"headrace prefix cache "


class Keys:
    """The keys this server accepts; with none, everybody may enter, and who is on this machine may load and unload."""

    def __init__(self, keys: Iterable[str], admin_keys: Iterable[str] = ()) -> None:
        """`admin_keys` may do all that the others may, and load and unload models.

        Raises `ConfigError` for a key that no HTTP client could send.
        """
        admin_keys = list(admin_keys)
        keys = [*keys, *admin_keys]
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(
                    "an API key must be printable ASCII without spaces",
                    hint="check --api-key, --admin-api-key, HEADRACE_API_KEY and HEADRACE_ADMIN_API_KEY",
                )
        self._digests = [_digest(key.encode()) for key in keys]
        self._admin_digests = [_digest(key.encode()) for key in admin_keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def salt_for(self, authorization: bytes | None) -> bytes | None:
        """The prefix-cache salt of the key in an `Authorization` header, None if there is no valid key.

        Every key is compared, whichever matches, so that the time taken tells nothing.
        """
        if not self._digests:
            return b""
        digest = _given(authorization)
        return hashlib.sha256(_SALT_PURPOSE + digest).digest()[:16] if _is_among(digest, self._digests) else None

    def may_administer(self, authorization: bytes | None, client: str | None) -> bool:
        """Whether a request may load and unload models. `client` is the address that it comes from.

        Where there are keys, one of the admin's is needed; where there are none, the client must be on this machine.
        """
        if self._digests:
            return _is_among(_given(authorization), self._admin_digests)
        try:
            return ipaddress.ip_address(client or "").is_loopback
        except ValueError:
            return False


def _given(authorization: bytes | None) -> bytes:
    """The digest of the key in an `Authorization` header; of nothing, which is no key's, where there is none."""
    scheme, _, given = (authorization or b"").partition(b" ")
    return _digest(given.strip() if scheme.lower() == b"bearer" else b"")


def _is_among(digest: bytes, known: Iterable[bytes]) -> bool:
    return any([hmac.compare_digest(digest, other) for other in known])


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
