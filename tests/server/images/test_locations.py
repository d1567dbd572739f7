"""What may stand in `image_url`, and the many spellings that may not."""

import base64
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.images.addresses import is_public, may_dial
from server.images.locations import DataImage, LocationError, RemoteImage, parse_location, parse_remote

PNG = b"\x89PNG\r\n\x1a\n"


def data_url(content: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(content).decode()


@pytest.mark.parametrize(
    "url",
    [
        data_url(PNG),
        data_url(PNG, "DATA:image/svg+xml;charset=utf-8;base64,"),
        data_url(PNG, "data:;base64,"),
        data_url(PNG).rstrip("="),
        data_url(PNG).replace("=", "%3D"),
        "data:image/png;base64,\n" + base64.encodebytes(PNG).decode(),
    ],
)
def test_data_urls_hold_their_bytes(url: str) -> None:
    assert parse_location(url, max_bytes=100) == DataImage(PNG)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png,abc", "data:image/png;base64"),
        ("data:text", "data:image/png;base64"),
        ("data:image/png;base64", "data:image/png;base64"),
        ("data:image/png;base64,", "no bytes"),
        ("data:image/png;base64,ü", "base64"),
        ("data:image/png;base64,a", "base64"),
        ("data:image/png;base64,ab_-", "base64"),
        ("data:image/png;base64,ab==cd==", "base64"),
        (data_url(b"x" * 101), "at most 100 bytes, got 101"),
        (data_url(b"x" * 1000), "at most 100 bytes"),
    ],
)
def test_data_urls_that_hold_nothing_or_too_much(url: str, said: str) -> None:
    with pytest.raises(LocationError, match=said):
        parse_location(url, max_bytes=100)


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_travel(content: bytes) -> None:
    assert parse_location(data_url(content), max_bytes=300) == DataImage(content)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://Example.ORG", RemoteImage("https", "example.org", 443, "/")),
        ("HTTP://example.org:80/a/b.png?x=1&y=%20#part", RemoteImage("http", "example.org", 80, "/a/b.png?x=1&y=%20")),
        ("https://example.org?x=a/b", RemoteImage("https", "example.org", 443, "/?x=a/b")),
        ("https://xn--bcher-kva.example/ü.png", RemoteImage("https", "xn--bcher-kva.example", 443, "/%C3%BC.png")),
        ("http://192.0.2.7:8080/x", RemoteImage("http", "192.0.2.7", 8080, "/x")),
        ("http://[2001:DB8:0::1]/x", RemoteImage("http", "2001:db8::1", 80, "/x")),
        ("https://a-b_c.example.org/@me", RemoteImage("https", "a-b_c.example.org", 443, "/@me")),
    ],
)
def test_addresses_have_one_reading(url: str, expected: RemoteImage) -> None:
    assert parse_location(url, max_bytes=100) == expected


AMBIGUOUS = [
    "",
    "example.org/x.png",
    "//example.org/x.png",
    "/etc/passwd",
    "C:\\x.png",
    "file:///etc/passwd",
    "ftp://example.org/x",
    "gopher://example.org/x",
    "javascript:alert(1)",
    "https:/example.org",
    "https:example.org",
    "https://",
    "https:///x",
    "https://:443/",
    " https://example.org",
    "https://example.org/a b",
    "https://example.org/\n",
    "https://example.org\\@127.0.0.1/",
    "https://example.org\t/",
    "https://user@example.org/",
    "https://user:password@example.org/",
    "https://example.org@127.0.0.1/",
    "https://example.org#@127.0.0.1/".replace("#", "%23"),
    "https://ex%61mple.org/",
    "https://127.0.0.1%2f/",
    "https://example.org./",
    "https://.example.org/",
    "https://example..org/",
    "https://-example.org/",
    "https://bücher.example/",
    "https://ⓔxample.org/",
    "https://127。0。0。1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.0.1./",
    "https://1.2.3.4.5/",
    "https://256.1.1.1/",
    "https://example.0/",
    "https://0/",
    "https://[::1",
    "https://::1/",
    "https://[127.0.0.1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[v1.x]/",
    "https://example.org:/",
    "https://example.org:0/",
    "https://example.org:65536/",
    "https://example.org:+443/",
    "https://example.org:\uff14\uff14\uff13/",
    "https://example.org:443:443/",
    "https://" + "a" * 64 + ".org/",
    "https://" + "a." * 130 + "org/",
    "https://example.org/" + "x" * 8192,
]


@pytest.mark.parametrize("url", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(LocationError):
        parse_remote(url)


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(["https://", "http://", "", "https://a/"]))
def test_whatever_is_taken_can_be_sent_as_it_is(text: str, start: str) -> None:
    try:
        found = parse_remote(start + text)
    except LocationError:
        return
    for part in (found.authority, found.target):
        assert part.isascii() and part.isprintable() and " " not in part
    assert found.target.startswith("/") and not set("@\\%") & set(found.host)
    assert parse_remote(f"{found.scheme}://{found.authority}{found.target}").host == found.host


NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1",
    "127.255.255.255", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8",
    "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1",
    "::ffff:8.8.8.8", "::ffff:0:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1",
    "100::1", "100:0:0:1::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1",
    "2001:db8::1", "2001:10::1", "2002:7f00:1::", "2002:808:808::", "3fff::1",
    "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%1",
    "fec0::1", "feff::1", "ff02::1", "4000::1", "8000::1",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_what_is_not_of_the_public_internet(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_what_is_of_the_public_internet(text: str) -> None:
    assert is_public(ip_address(text))


def test_an_operator_can_name_networks() -> None:
    private = [ip_network("10.1.0.0/16"), ip_network("fd00::/8")]
    assert may_dial(ip_address("10.1.2.3"), private) and may_dial(ip_address("fd00::1"), private)
    for other in ("10.2.0.1", "127.0.0.1", "::ffff:10.1.2.3", "fd00::1%1"):
        assert not may_dial(ip_address(other), private)
