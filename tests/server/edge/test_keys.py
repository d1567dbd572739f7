"""Who a header belongs to, and which pages of other origins may read answers."""

import hashlib
import hmac

import pytest
from starlette.datastructures import Headers

from engine.errors import ConfigError
from server.config.keys_file import ALL_RIGHTS, KeyEntry
from server.edge.auth import Keys
from server.edge.cors import Cors


def entry(key: str, name: str = "", **more: object) -> KeyEntry:
    return KeyEntry(name=name or key, digest=hashlib.sha256(key.encode()).digest(), **more)  # type: ignore[arg-type]


def name_of(keys: Keys, authorization: bytes | None) -> str | None:
    caller = keys.caller(authorization, "127.0.0.1")
    return None if caller is None else caller.name


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (b"Bearer alice", True),
        (b"bearer alice", True),
        (b"BEARER   alice ", True),
        (b"Bearer\talice", False),
        (b"Basic alice", False),
        (b"alice", False),
        (b"Bearer", False),
        (b"Bearer ", False),
        (b"", False),
        (b"Bearer alice bob", False),
        (b"Bearer alice,Bearer bob", False),
        (b"Bearer Alice", False),
        (b"Bearer alice\xff", False),
        (b"Bearer " + hashlib.sha256(b"alice").hexdigest().encode(), False),
        (None, False),
    ],
)
def test_only_a_bearer_that_is_the_key_is_let_in(header: bytes | None, known: bool) -> None:
    assert name_of(Keys(entries=[entry("alice")]), header) == ("alice" if known else None)


def test_a_file_without_keys_lets_nobody_in() -> None:
    keys = Keys(entries=[])
    assert keys.needed and name_of(keys, None) is None and name_of(keys, b"Bearer ") is None
    assert not Keys().needed and name_of(Keys(), None) == ""


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(["plain"], ["admin"], [entry(f"key-{number}") for number in range(1000)])
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    for header in (b"Bearer plain", b"Bearer key-0", b"Bearer key-999", b"Bearer nobody", None):
        compared.clear()
        keys.caller(header, None)
        assert len(set(compared)) == len(compared) == 1002


def test_replaced_keys_keep_what_they_have_used() -> None:
    keys = Keys(["plain"], entries=[entry("alice", requests_per_minute=2), entry("bob")])
    alice = keys.caller(b"Bearer alice", None)
    assert alice is not None
    alice.account.take_request()
    keys.replace([entry("alice", "renamed", requests_per_minute=5)])
    assert name_of(keys, b"Bearer bob") is None and name_of(keys, b"Bearer plain")
    again = keys.caller(b"Bearer alice", None)
    assert again is not None and again.name == "renamed" and again.salt == alice.salt
    assert dict(again.account.headers())[b"x-ratelimit-remaining-requests"] == b"4"
    keys.replace([])
    assert name_of(keys, b"Bearer alice") is None
    keys.replace([entry("alice", requests_per_minute=5)])
    back = keys.caller(b"Bearer alice", None)
    assert back is not None and back.account is alice.account


def test_a_key_is_in_the_file_or_on_the_command_line() -> None:
    with pytest.raises(ConfigError) as caught:
        Keys(["secret"], entries=[entry("secret", "alice")])
    assert "alice" in str(caught.value) and "secret" not in str(caught.value)
    keys = Keys(["secret"], entries=[entry("bob")])
    with pytest.raises(ConfigError):
        keys.replace([entry("secret", "alice")])
    assert name_of(keys, b"Bearer bob") == "bob"


def test_the_same_key_twice_on_the_command_line_has_the_most_rights() -> None:
    caller = Keys(["a", "a"], ["a"]).caller(b"Bearer a", None)
    assert caller is not None and caller.rights == ALL_RIGHTS


@pytest.mark.parametrize(
    ("plain", "admin", "file", "several"),
    [
        ([], [], None, False),
        (["a"], [], None, False),
        (["a", "b"], [], None, True),
        (["a"], ["chief"], None, False),
        (["a", "b"], ["b"], None, True),
        (["a"], [], [{}], True),
        ([], ["chief", "other"], [{}, {"rights": frozenset({"metrics"})}, {"rights": frozenset({"admin"})}], False),
        ([], ["chief"], [{"rights": frozenset({"admin", "use"})}, {}], True),
        ([], [], [{}, {"rights": frozenset()}], False),
        ([], ["chief"], [], False),
    ],
)
def test_only_keys_that_ask_models_share(
    plain: list[str], admin: list[str], file: list[dict[str, object]] | None, several: bool
) -> None:
    entries = None if file is None else [entry(f"key-{number}", **fields) for number, fields in enumerate(file)]
    keys = Keys(plain, admin, entries)
    assert keys.are_several() is several
    if entries is not None:
        keys.replace([*entries, entry("more"), entry("further")])
        assert keys.are_several()
        keys.replace(entries)
        assert keys.are_several() is several


def test_entries_that_mean_no_model_are_told_by_the_name_of_their_key() -> None:
    keys = Keys(
        ["plain"],
        entries=[
            entry("any"), entry("none", models=()), entry("one", models=("small",)), entry("off", models=("smal", "x")),
            entry("half", models=("small", "smal")),
        ],
    )  # fmt: skip
    found = keys.entries_without_model(lambda text: {"small"} & {text})
    assert found == {"off": ["smal", "x"], "half": ["smal"]}


# ---- pages of other origins


def allowed(cors: Cors, origin: str | None) -> str | None:
    headers = Headers({} if origin is None else {"origin": origin})
    found = dict(cors.headers(headers))
    assert b"access-control-allow-credentials" not in found
    return found[b"access-control-allow-origin"].decode() if b"access-control-allow-origin" in found else None


def test_origins_are_exact() -> None:
    cors = Cors(["https://app.example", "http://localhost:3000"])
    assert allowed(cors, "https://app.example") == "https://app.example"
    assert allowed(cors, "http://localhost:3000") == "http://localhost:3000"
    for origin in (
        "https://app.example.evil",
        "http://app.example",
        "https://app.example:8443",
        "null",
        "",
        "https://APP.example",
        None,
    ):
        assert allowed(cors, origin) is None
    assert (b"vary", b"origin") in cors.headers(Headers({}))
    assert allowed(Cors(), "https://app.example") is None and Cors().headers(Headers({})) == []
    assert allowed(Cors(["*"]), "https://any.example") == "*"


@pytest.mark.parametrize(
    "origin",
    ["", "app.example", "https://", "https://app.example/", "https://app.example/x", "https://*.example", "null", "ftp://a",
     "https://a@app.example", "https://APP.example", "https://app.example:443", "https://app.example:x", "file:///x",
     "https://a b"],
)  # fmt: skip
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    with pytest.raises(ConfigError):
        Cors([origin])
