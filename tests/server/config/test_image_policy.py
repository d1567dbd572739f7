"""Where images may come from is said in one way, and every mistake in saying it is told."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from engine.errors import ConfigError
from server.config.image_policy import NOWHERE, RemotePolicy, parse_policy
from server.config.settings import load_models_file


def policy_of(tmp_path: Path, images: str) -> RemotePolicy:
    (tmp_path / "models.yaml").write_text(f"default: a\nmodels:\n  - name: a\n    source: ./x\n    images: {images}\n")
    return load_models_file(tmp_path / "models.yaml").find("a").images


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("{}", NOWHERE),
        ("{remote: off}", NOWHERE),
        ('{remote: "off"}', NOWHERE),
        ("{remote: public}", RemotePolicy(any_host=True)),
        ("{remote: Example.ORG}", RemotePolicy(hosts=frozenset({"example.org"}))),
        ('{remote: [a.test, "b.test:9000"]}', RemotePolicy(hosts=frozenset({"a.test", "b.test:9000"}))),
        (
            "{remote: public, private: [10.0.0.0/8, 'fd00::/8']}",
            RemotePolicy(any_host=True, private=(ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
        ),
    ],
)
def test_it_can_be_said(tmp_path: Path, images: str, expected: RemotePolicy) -> None:
    assert policy_of(tmp_path, images) == expected


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("public", "must be a mapping"),
        ("{remote: on}", "remote must be text, got 'on'"),
        ("{remote: 5}", "remote must be text, got '5'"),
        ("{remote: [public, a.test]}", "got public, a.test"),
        ('{remote: ["https://a.test"]}', "got 'https://a.test'"),
        ('{remote: ["*.test"]}', "got '*.test'"),
        ('{remote: [""]}', "remote"),
        ("{remote: public, private: [10.0.0.1/8]}", "private must list networks"),
        ("{remotes: public}", "did you mean 'remote'"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, images: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy_of(tmp_path, images)
    assert "models.yaml:5" in str(caught.value) and said in f"{caught.value} {caught.value.hint}"


def test_the_option_says_the_same() -> None:
    assert parse_policy(["a.test", "b.test:80"], []).hosts == {"a.test", "b.test:80"}
