"""Rewrite the generated tables of the documentation, or check that they are current.

    python -m scripts.generate_docs [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything between the two comes from the code, so
that the documentation cannot promise what the code does not do.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.grammar.jobs import MAX_QUEUED, MAX_SHARE
from engine.grammar.language.counts import MAX_POSITIONS
from engine.weights.random_model import architecture_names
from scripts.lock import read_lock
from scripts.vendor import LIBRARIES
from server.benchmarks.conformance import CHECKS
from server.benchmarks.verdicts import MEANINGS
from server.commands.cli import build_parser
from server.commands.fits import rank_rows, token_rows
from server.config.settings import ModelSpec, load_models_file
from server.context import LOAD_WAIT_SECONDS
from server.edge.connections import MAX_CONNECTIONS
from server.edge.guard import MAX_HEADERS
from server.edge.http_protocol import HEADER_SECONDS, LINGER_BYTES, LINGER_SECONDS, UNREAD_SECONDS
from server.edge.limits import MIB, Limits
from server.edge.queues import QueueLimits
from server.edge.request_head import MAX_HEAD_BYTES
from server.edge.sse import KEEP_ALIVE_SECONDS
from server.fleet.gpus import GPUS, parse_gpus
from server.fleet.policy import FleetPolicy
from server.metrics import exposition, gather
from server.prompt.text_process import TextPolicy
from server.protocol.error_table import ERROR_TABLE
from server.protocol.fields import FieldRow, completion_field_table, field_table
from server.protocol.json_values import MAX_DEPTH, MAX_KEYS_PER_OBJECT
from server.telemetry.counters import ServerCounters

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/api.md",
    "docs/models.md",
    "docs/deployment.md",
    "docs/observing.md",
    "docs/security.md",
    "docs/conformance.md",
    "docs/licences.md",
)
STATUS = {"supported": "yes", "hint": "a hint", "partly": "in part", "refused": "refused"}

_REGION = re.compile(r"(<!-- table: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Rewrite, or with --check compare; the exit code."""
    parser = argparse.ArgumentParser(description="Rewrite the generated tables of the documentation.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is not current")
    check = parser.parse_args().check
    stale = stale_pages()
    for page, text in stale.items():
        if not check:
            (ROOT / page).write_text(text, encoding="utf-8")
        print(f"{page}: {'its tables are not current; run: make docs' if check else 'rewritten'}")
    return 1 if check and stale else 0


def stale_pages() -> dict[str, str]:
    """The pages whose tables differ from the code, with the text they should have."""
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    current = {page: regenerated(text) for page, text in texts.items()}
    return {page: text for page, text in current.items() if text != texts[page]}


def regenerated(text: str) -> str:
    """A page with its tables rewritten. Raises KeyError for a table that nobody generates."""
    return _REGION.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; each cell is one line."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n" for cells in lines)


def support_table() -> str:
    """The short table of the README: the fields by what becomes of them."""

    def names(rows: Iterable[FieldRow]) -> str:
        return ", ".join(f"`{row.name}`" for row in rows)

    rows = field_table()
    partly = "; ".join(f"`{row.name}` ({row.range})" for row in rows if row.status == "partly")
    kinds = (
        ("Works", names(row for row in rows if row.status == "supported")),
        ("Taken as hints", names(row for row in rows if row.status == "hint")),
        ("Works in part", partly),
        ("Refused", names(row for row in rows if row.status == "refused")),
    )
    return table(("", "Fields of `POST /v1/chat/completions`"), [kind for kind in kinds if kind[1]])


def fields_table() -> str:
    """Every field of a chat request."""
    return _rows_table(field_table())


def completions_table() -> str:
    """Every field of a request for raw completions."""
    return _rows_table(completion_field_table())


def _rows_table(rows: Iterable[FieldRow]) -> str:
    cells = ((f"`{row.name}`", row.meaning, row.range, STATUS[row.status]) for row in rows)
    return table(("Field", "Meaning", "Range", "Done here"), cells)


def models_table() -> str:
    """The models of models.yaml."""
    file = load_models_file(ROOT / "models.yaml")
    return table(("Model", "Other names", "Download"), (_model_row(spec, file.default) for spec in file.models))


def _model_row(spec: ModelSpec, default: str) -> tuple[str, str, str]:
    name = f"`{spec.name}`" + (" (the default)" if spec.name == default else "")
    size = "" if spec.size is None else f"{spec.size / 1e9:.1f} GB" if spec.size >= 1e9 else f"{spec.size / 1e6:.0f} MB"
    return name, ", ".join(f"`{alias}`" for alias in spec.aliases), size


def architectures_table() -> str:
    """Names that `random://` knows."""
    return table(("`random://NAME`",), ((f"`{name}`",) for name in architecture_names()))


def options_table() -> str:
    """The options of `headrace serve`."""
    return table(("Option", "Meaning"), _options())


def _options() -> Iterator[tuple[str, str]]:
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    serve: argparse.ArgumentParser = commands.choices["serve"]
    for action in serve._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        choices = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
        value = action.metavar or ("" if action.choices or action.nargs == 0 else action.dest.upper())
        name = f"{action.option_strings[-1]} {value}" if action.option_strings else f"{value}..."
        text = (action.help or "") % vars(action)
        yield f"`{name.strip()}`", "; ".join(part for part in (text, choices) if part)


def metrics_table() -> str:
    """Our series of /metrics."""
    return table(("Series", "Kind", "Meaning"), _series("headrace_"))


def vllm_table() -> str:
    """Those under vLLM's names."""
    return table(("Series", "Kind", "Meaning"), _series("vllm:"))


def _series(prefix: str) -> Iterator[tuple[str, str, str]]:
    lines = exposition(gather([], ServerCounters(), 0)).splitlines()
    kinds = dict(line.removeprefix("# TYPE ").split(" ", 1) for line in lines if line.startswith("# TYPE "))
    for line in lines:
        name, _, text = line.removeprefix("# HELP ").partition(" ")
        if line.startswith(f"# HELP {prefix}"):
            yield f"`{name}`", kinds[name], re.sub(r"headrace_\w+", r"`\g<0>`", text)


def limits_table() -> str:
    """What a client may ask of the server, in numbers."""
    limits, queue, policy, texts = Limits(), QueueLimits(), FleetPolicy(), TextPolicy()
    rows = (
        (
            "Connections",
            f"{MAX_CONNECTIONS}, or what `ulimit -n` leaves (`--max-connections`)",
            "idle ones are ended, then 503",
        ),
        ("Request line and headers", f"{MAX_HEAD_BYTES // 1024} KiB, {MAX_HEADERS} headers", "414, 431"),
        ("Time for the headers to arrive", f"{HEADER_SECONDS:g} s", "the connection is closed"),
        ("Request body", f"{limits.max_body_bytes // MIB} MiB", "413"),
        ("Time for the body to arrive", f"{limits.body_seconds:g} s", "408"),
        (
            "Rest of a request that is taken after an early answer",
            f"{LINGER_BYTES // MIB} MiB, {LINGER_SECONDS:g} s",
            "the connection ends",
        ),
        ("All bodies at once, until their text is tokens", f"{limits.max_buffered_bytes // MIB} MiB", "503"),
        ("Size from which a body is read in a process of its own", f"{texts.here_bytes // 1024} KiB", ""),
        (
            "Such processes",
            f"{texts.processes}, of which those for more than {texts.large_bytes // MIB} MiB: {texts.processes - 1}",
            f"waits, 503 after {texts.wait_seconds:g} s",
        ),
        (
            "Their computing for one body, and their memory",
            f"{texts.cpu_seconds} s, {texts.memory_bytes // MIB} MiB",
            "400",
        ),
        ("Keys of one JSON object, depth of free JSON", f"{MAX_KEYS_PER_OBJECT}, {MAX_DEPTH}", "400"),
        ("Answers running and waiting (`n` counts)", f"{limits.max_requests} (`--max-requests`)", "503"),
        (
            "Answers that wait for one model, tokens of their prompts",
            f"{queue.max_queue} (`--max-queue`), {queue.max_queue_tokens} (`--max-queue-tokens`)",
            "503",
        ),
        ("One key's part of these, where several may use models", "half of what the others leave", "503"),
        ("Wait for the first token", "none (`--queue-timeout`)", "503"),
        ("Time of a request in all", "none (`--request-timeout`, `timeout`)", "504, or an error in the stream"),
        ("Constraints that wait to be compiled, of one key", f"{MAX_QUEUED}, {MAX_SHARE}", "503"),
        ("Characters of a pattern, its counts written out", f"{MAX_POSITIONS}", "400"),
        ("Time a client may leave sent bytes unread", f"{UNREAD_SECONDS:g} s", "the connection ends"),
        ("Pause of a stream before a keep-alive comment", f"{KEEP_ALIVE_SECONDS:g} s", ""),
        ("Silence of an engine before it is not called ready", f"{policy.stale_after:g} s", "`/health` is 503"),
        ("Silence of an engine before it is replaced", f"{policy.hang_after:g} s", "its requests fail"),
        (
            "Deaths of an engine before its model has failed",
            f"{policy.max_crashes} within {policy.crash_window / 60:g} minutes",
            "503 for that model, with the reason",
        ),
        (
            "Pause before a request tries a failed model again",
            f"{policy.first_retry_delay:g} s, doubled each time, at most {policy.max_retry_delay:g} s",
            "it is loaded again",
        ),
        ("Wait of an answer in one piece for its model", f"{LOAD_WAIT_SECONDS:g} s (`--load-wait`)", "503"),
        ("Wait of a load for others to fall idle", f"{policy.patience:g} s", "they take no new requests"),
    )
    return table(("What", "Limit", "Beyond it"), rows)


def errors_table() -> str:
    """Every error a client can meet."""
    rows = ((str(row.status), ", ".join(f"`{code}`" for code in row.codes), row.when) for row in ERROR_TABLE)
    return table(("Status", "`code`", "When"), rows)


def libraries_table() -> str:
    """What the playground's pages use of others."""
    rows = ((f"`{one.file}`", f"`{one.package}` {one.version}", one.licence) for one in LIBRARIES)
    return table(("File", "Package", "Licence"), rows)


def locked_table() -> str:
    """What a container holds, by licence."""
    names: dict[str, list[str]] = {}
    for entry in read_lock().values():
        names.setdefault(entry.licence, []).append(f"`{entry.name}`")
    return table(("Licence", "Packages"), ((licence, ", ".join(names[licence])) for licence in sorted(names)))


SERVERS = {
    "headrace": "Headrace",
    "llama_cpp": "llama.cpp server",
    "vllm": "vLLM",
    "transformers": "transformers serve, continuous batching",
    "transformers_plain": "transformers serve",
}
"""What `bench/results/DATE-conformance-NAME.json` is about, in the order of the tables."""


def conformance() -> dict[str, dict[str, Any]]:
    """The newest result of each server."""
    found = {}
    for name in SERVERS:
        paths = sorted((ROOT / "bench" / "results").glob(f"*-conformance-{name}.json"))
        if paths:
            found[name] = json.loads(paths[-1].read_text(encoding="utf-8"))
    return found


def verdicts_table() -> str:
    """How often each server had each verdict."""
    rows = (
        (SERVERS[name], *(str(result["counts"].get(verdict, 0)) for verdict in MEANINGS))
        for name, result in conformance().items()
    )
    return table(("", *MEANINGS), rows)


def versions_table() -> str:
    """What was asked, when and how."""
    rows = (
        (SERVERS[name], _version(result), result["date"][:10], f"`headrace bench conformance --start {name}`")
        for name, result in conformance().items()
    )
    return table(("Server", "Version", "Date", "Command"), rows)


def _version(result: dict[str, Any]) -> str:
    return str(result["server_version"]).replace("the commit above", f"commit {result['commit']}")


def meanings_table() -> str:
    """The verdicts."""
    return table(("Verdict", "Means"), ((f"`{verdict}`", meaning) for verdict, meaning in MEANINGS.items()))


def conformance_table() -> str:
    """Each check with its rule, and what came of it."""
    results = conformance()
    told = {
        name: {(one["field"], one["use"]): one["verdict"] for one in result["checks"]}
        for name, result in results.items()
    }
    rows = (
        (
            f"`{check.field}`", check.use, check.rule,
            *(told[name].get((check.field, check.use), "not asked") for name in results),
        )
        for check in CHECKS
    )  # fmt: skip
    return table(("Field", "Sent", "Honoured if", *(SERVERS[name] for name in results)), rows)


def fits_table() -> str:
    """Thousands of tokens that KV caches of the listed models hold on some GPUs."""
    file = load_models_file(ROOT / "models.yaml")
    gpus = [GPUS[name] for name in ("4090", "l40s", "a100-80", "h100", "h200", "b200")]
    return table(("Model", "Form", *(gpu.title for gpu in gpus)), token_rows(file, gpus))


def ranks_table() -> str:
    """What the models that several GPUs share come to there."""
    file = load_models_file(ROOT / "models.yaml")
    places = {
        "meta-llama/Llama-3.3-70B-Instruct": ("h100", "2xh100", "4xh100", "h200", "2xh200", "4xh200"),
        "deepseek-ai/DeepSeek-R1": ("8xh200",),
    }
    rows = (
        row
        for spec in file.models
        if spec.name in places
        for row in rank_rows(spec, [parse_gpus(text) for text in places[spec.name]])
    )
    heads = ("Model", "Form", "GPUs", "Thousand tokens", "Context", "Limit, tok/s: at 1", "at 64", "at most")
    return table(heads, rows)


TABLES: dict[str, Callable[[], str]] = {
    "support": support_table,
    "fields": fields_table,
    "completions": completions_table,
    "models": models_table,
    "architectures": architectures_table,
    "options": options_table,
    "metrics": metrics_table,
    "vllm": vllm_table,
    "limits": limits_table,
    "errors": errors_table,
    "fits": fits_table,
    "ranks": ranks_table,
    "libraries": libraries_table,
    "locked": locked_table,
    "verdicts": verdicts_table,
    "versions": versions_table,
    "meanings": meanings_table,
    "conformance": conformance_table,
}

if __name__ == "__main__":
    sys.exit(main())
