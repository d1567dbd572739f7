"""The keys file: what it may say, and that no complaint about it repeats a key."""

import hashlib
from pathlib import Path

import pytest

from engine.errors import ConfigError
from server.config.keys_file import KeyEntry, load_keys_file

A, B = (hashlib.sha256(key).hexdigest() for key in (b"a", b"b"))
SECRET = "hr-a-key-that-stands-where-it-must-not"


def load(tmp_path: Path, text: str | bytes) -> tuple[KeyEntry, ...]:
    path = tmp_path / "keys.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_keys_file(path)


def test_everything_that_a_key_may_have(tmp_path: Path) -> None:
    text = f"""
keys:
  - name: alice
    sha256: {A.upper()}
    rights: [use, metrics]
    models: [small, "Qwen/*"]
    requests_per_minute: 60
    tokens_per_minute: 0
    concurrent_answers: 4
    weight: 2.5
    lowest_priority: -5
  - {{name: böb@team, sha256: {B}}}
"""
    alice, bob = load(tmp_path, text)
    assert alice == KeyEntry(
        name="alice", digest=hashlib.sha256(b"a").digest(), rights=frozenset({"use", "metrics"}),
        models=("small", "Qwen/*"), requests_per_minute=60, tokens_per_minute=0, concurrent_answers=4, weight=2.5,
        lowest_priority=-5,
    )  # fmt: skip
    assert bob == KeyEntry(name="böb@team", digest=hashlib.sha256(b"b").digest())


def test_line_ends_and_marks_of_windows(tmp_path: Path) -> None:
    text = f"keys:\n  - name: alice\n    sha256: {A}\n    requests_per_minute: 3\n"
    plain = load(tmp_path, text)
    for written in (
        text.replace("\n", "\r\n").encode(),
        text.encode("utf-8-sig"),
        text.replace("\n", "\r\n").encode("utf-8-sig"),
    ):
        assert load(tmp_path, written) == plain


def test_a_file_may_have_no_keys(tmp_path: Path) -> None:
    assert load(tmp_path, "keys: []") == ()


def entry(**fields: str) -> str:
    return (
        "keys:\n  - {"
        + ", ".join(f"{name}: {value}" for name, value in ({"name": "a", "sha256": A} | fields).items())
        + "}\n"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("keys:", "must be a list"),
        ("- a", "must be a mapping"),
        (entry(name=""), "name must be text"),
        (entry(name="' '"), "a name is"),
        (entry(name="'a b'"), "a name is"),
        (entry(name='"a\\nb"'), "a name is"),
        (entry(name="x" * 65), "a name is"),
        (entry(sha256="abc"), "64 hex digits"),
        (entry(sha256=hashlib.sha256(b"").hexdigest()), "64 hex digits"),
        (entry(rights="[root]"), "rights must be one of use, admin, metrics"),
        (entry(requests_per_minute="-1"), "requests_per_minute must be a whole number of at least 0"),
        (entry(tokens_per_minute="1.5"), "tokens_per_minute must be"),
        (entry(tokens_per_minute="9" * 40), "tokens_per_minute must be"),
        (entry(concurrent_answers="many"), "concurrent_answers must be"),
        (entry(lowest_priority="urgent"), "lowest_priority must be a whole number"),
        (entry(weight="0"), "weight must be more than 0"),
        (entry(wieght="1"), "unknown key 'wieght'"),
        (f"keys:\n- {{name: a, sha256: {A}}}\n- {{name: a, sha256: {B}}}", "yaml:3: the name 'a' is taken by line 2"),
        (f"keys:\n- {{name: a, sha256: {A}}}\n- {{name: b, sha256: {A}}}", "keys.yaml:3: b has the key of line 2"),
        (f"keys: [{{name: a, sha256: {A}}}, {{name: a, sha256: {B}}}]", "the name 'a' is taken"),
        ("keys:\n  - name: a\n", "a key needs 'sha256'"),
        ("keys: [", "not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"keys: {SECRET}",
        f"keys:\n  - {SECRET}",
        f"keys:\n  - {{name: a, sha256: {SECRET}}}",
        "keys:\n  - {name: a, sha256: 123456}",
        f"keys:\n  - {{name: {SECRET!r} , sha256: {SECRET}}}",
        f"keys:\n  - {{name: 'a {SECRET}', sha256: {A}}}",
        f"keys:\n  - name: a\n    sha256: [{SECRET}]",
        f"keys:\n  - name: a\n    key: {SECRET}",
        f"keys:\n  - name: a\n   sha256: {SECRET}",
    ],
)
def test_no_complaint_repeats_a_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    said = f"{caught.value} {caught.value.hint}"
    assert SECRET not in said and "123456" not in said
