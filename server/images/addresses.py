"""Which network addresses a server may dial for somebody else: only those that belong to the public internet.

`ipaddress` alone does not know: it takes for global what wraps a private address in an IPv6 one, multicast, and the
site-local networks that older systems still route.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_WRAPPED = tuple(
    ip_network(network)
    for network in (
        "::/96",  # IPv4-compatible, RFC 4291
        "::ffff:0:0/96",  # IPv4-mapped, RFC 4291
        "::ffff:0:0:0/96",  # IPv4-translated, RFC 2765
        "64:ff9b::/96",  # NAT64, RFC 6052
        "64:ff9b:1::/48",  # NAT64 for local use, RFC 8215
        "2001::/23",  # Teredo and other protocols, RFC 2928
        "2002::/16",  # 6to4, RFC 3056
    )
)
"""Networks whose addresses hold an IPv4 address, which a gateway would dial."""
_NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "192.88.99.0/24",  # relays of 6to4, RFC 7526
        "fec0::/10",  # site-local, RFC 3879
        "3fff::/20",  # documentation, RFC 9637
    )
)
_PUBLIC_IPV6 = ip_network("2000::/3")
"""All that IANA has given out for global unicast."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and holds no other."""
    if isinstance(address, IPv6Address) and (address.scope_id is not None or address not in _PUBLIC_IPV6):
        return False
    if any(address in network for network in (*_WRAPPED, *_NOT_PUBLIC)):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def may_dial(address: Address, private: Iterable[Network]) -> bool:
    """Whether an address is public, or in a network that the operator has named."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    return is_public(address) or any(address in network for network in private)
