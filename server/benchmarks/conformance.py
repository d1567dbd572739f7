"""The contract of chat completions, sent field by field to any endpoint: `headrace bench conformance`.

Says of each use of a field whether it is honoured, refused, ignored or done wrongly, by rules that look at answers
alone. A refusal that names the field is an honest answer; a field that is passed over is none. docs/conformance.md has
the rules.
"""

import argparse
import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from server.benchmarks.amounts import positive
from server.benchmarks.chat_stream import Endpoint, EndpointError
from server.benchmarks.checks_answer import ANSWERS
from server.benchmarks.checks_content import CALLS, CONSTRAINTS, CONVERSATIONS
from server.benchmarks.checks_sampling import SAMPLING
from server.benchmarks.exchange import Asker, BrokenError, RefusedError
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.peer_servers import MODEL, PEERS, Setting
from server.benchmarks.peer_weights import package_file
from server.benchmarks.peers import DEFAULT_HOME
from server.benchmarks.progress import Shown
from server.benchmarks.server_process import free_port, last_words, running, wait_for_answer
from server.benchmarks.verdicts import MEANINGS, Check, judged

HELP = "see which fields of the contract a server honours"
CHECKS: tuple[Check, ...] = (*CONVERSATIONS, *ANSWERS, *SAMPLING, *CONSTRAINTS, *CALLS)
START_SECONDS = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options, but those that name the server."""
    parser.add_argument("--no-model", action="store_true", help="send no model, for servers that want none")
    parser.add_argument(
        "--start", choices=PEERS, metavar="NAME",
        help=f"start a server with the default model and ask that, in place of --url: {', '.join(PEERS)}",
    )  # fmt: skip
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="where such servers are [%(default)s]")
    parser.add_argument("--timeout", type=positive, default=120.0, metavar="SECONDS", help="a request may take [120]")


def run(options: argparse.Namespace) -> Outcome:
    """Ask the server. Raises `ConfigError`, `EndpointError`."""
    with Shown() as shown, contextlib.ExitStack() as stack:
        found: dict[str, Any] = {}
        if options.start:
            shown.stage(f"starting {options.start}")
            options.url, has_model = stack.enter_context(_started(options.start, options.home))
            options.model, options.no_model = MODEL, not has_model
            options.label = options.label or options.start
            found["server_version"] = PEERS[options.start].version(options.home)
        elif not options.model and not options.no_model:
            options.model = Endpoint(options.url, api_key=options.api_key).first_model()
        options.label = options.label or options.model
        model = None if options.no_model else options.model
        asker = Asker(options.url, model=model, api_key=options.api_key, timeout=options.timeout)
        try:
            asker.ask()
        except (RefusedError, BrokenError) as error:
            raise EndpointError(f"{options.url} does not answer a plain request: {error}") from error
        shown.stage(f"{options.label}: asking", len(CHECKS))
        found["checks"] = []
        for check in CHECKS:
            finding = judged(check, asker)
            found["checks"].append({"field": check.field, "use": check.use, "rule": check.rule,
                                    "verdict": finding.verdict, "detail": finding.detail})  # fmt: skip
            shown.advance()
    return outcome_of(options.label, found)


def outcome_of(label: str, found: dict[str, Any]) -> Outcome:
    """The table; the exit code is 1 if anything is ignored or wrong."""
    checks = found["checks"]
    rows = [[one["field"], one["use"], one["verdict"], _plain(one["detail"])] for one in checks]
    counts = Counter(one["verdict"] for one in checks)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MEANINGS if counts[verdict])
    return Outcome(
        kind="conformance", label=label, found=found | {"counts": dict(counts)}, notes=(summary,),
        tables=(Table(caption=label, header=["field", "use", "verdict", ""], rows=rows),),
        has_failed=bool(counts["ignored"] or counts["wrong"]),
    )  # fmt: skip


def _plain(detail: str) -> str:
    return detail[:90].replace("|", "/")


@contextlib.contextmanager
def _started(name: str, home: Path) -> Iterator[tuple[str, bool]]:
    """The address of a peer's server, and whether requests name its model. Raises `ConfigError`."""
    peer = PEERS[name]
    setting = Setting(home=home, gguf=package_file().absolute())
    setting.weights.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    names_model = peer.body.get("model", MODEL) is not None
    hello: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hello."}], "stream": True, "max_tokens": 2}
    if names_model:
        hello["model"] = MODEL
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with running(peer.command(setting, port), log, peer.environment) as process:
            problem = wait_for_answer(url, hello, process, START_SECONDS)
            if problem:
                raise ConfigError(f"{name} did not start: {problem}", hint=last_words(log))
            yield url, names_model
