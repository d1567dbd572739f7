"""Where images may be fetched from: `images` in models.yaml, and an option of the command line."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from engine.errors import ConfigError

OFF, PUBLIC = "off", "public"


@dataclass(frozen=True, slots=True)
class RemotePolicy:
    """Where images may be fetched from. By default from nowhere."""

    any_host: bool = False
    """Every host of the public internet, at its scheme's own port."""
    hosts: frozenset[str] = frozenset()
    """These hosts, in lower case: `host` at its scheme's own port, `host:port` at that one."""
    private: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may be dialled though they are not public."""

    @property
    def is_off(self) -> bool:
        """Whether nothing may be fetched."""
        return not (self.any_host or self.hosts)


NOWHERE = RemotePolicy()


def parse_policy(remote: str | list[str], private: list[str]) -> RemotePolicy:
    """`remote` is off, public, a host or a list of hosts; `private` lists networks. Raises `ConfigError`."""
    words = [remote] if isinstance(remote, str) else remote
    if len(words) > 1 and {OFF, PUBLIC} & set(words):
        raise ConfigError(f"remote must be {OFF}, {PUBLIC}, or a list of hosts, got {', '.join(words)}")
    try:
        networks = tuple(ip_network(text) for text in private)
    except ValueError as error:
        raise ConfigError(f"private must list networks such as 10.0.0.0/8: {error}") from None
    if words == [OFF]:
        return RemotePolicy(private=networks)
    if words == [PUBLIC]:
        return RemotePolicy(any_host=True, private=networks)
    for word in words:
        if "/" in word or "*" in word or not word.isascii() or not word:
            raise ConfigError(f"remote must list hosts such as images.example.org or minio:9000, got {word!r}")
    return RemotePolicy(hosts=frozenset(word.lower() for word in words), private=networks)
