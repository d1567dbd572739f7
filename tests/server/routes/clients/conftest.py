"""Servers whose answers are known, for the clients to talk to."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.prompt.tokenizer import ChatTokenizer
from tests.server.fakes import RunningServer, Script, running_server
from tests.server.routes.clients.kinds import KINDS, REASONING_TEMPLATE, SEEDS

FAILS_AFTER = 3


@dataclass(frozen=True)
class Servers:
    """One without and one with a template that opens reasoning, and one that fails in the middle of answers."""

    plain: RunningServer
    reasoning: RunningServer
    failing: RunningServer

    def of(self, name: str) -> RunningServer:
        """The server that answers requests of a kind."""
        return self.reasoning if KINDS[name].reasons else self.plain


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[Servers]:
    reasoner = tmp_path_factory.mktemp("reasoner")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir / name, reasoner)
    (reasoner / "chat_template.jinja").write_text(REASONING_TEMPLATE)
    tokenizer = ChatTokenizer.load(smollm2_dir)
    answers = {
        SEEDS[name]: [tokenizer.encode(text, allow_special=False) for text in kind.written]
        for name, kind in KINDS.items()
    }
    words = tokenizer.encode("Rain.", allow_special=False)

    def script(directory: Path, **more: int) -> Script:
        return Script(model_dir=str(directory), token_ids=words, eos_after=len(words), answers=answers, **more)  # type: ignore[arg-type]

    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("plain"), script(smollm2_dir)) as plain,
        running_server(patch, tmp_path_factory.mktemp("reasoning"), script(reasoner)) as reasoning,
        running_server(
            patch, tmp_path_factory.mktemp("failing"), script(smollm2_dir, error_after=FAILS_AFTER)
        ) as failing,
    ):
        yield Servers(plain, reasoning, failing)
