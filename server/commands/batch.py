"""`headrace batch IN.jsonl OUT.jsonl`: answer a file of requests, without a server."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from tqdm import tqdm

from engine.errors import ConfigError
from server.benchmarks.engine_options import add_settings, configured
from server.offline.batch import Output, answer_all, look_through, read_requests
from server.offline.llm import CONCURRENCY
from server.offline.local import LocalServer, find_spec


def add_batch_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand; its handler is in the namespace's `handler`."""
    batch = subparsers.add_parser(
        "batch",
        help="answer a file of requests",
        description="Answer a file of requests in OpenAI's batch format into another. What stands in the second one has"
        " been answered and is not asked again, so the same command goes on after whatever has ended it.",
    )
    batch.add_argument("input", type=Path, metavar="IN.jsonl")
    batch.add_argument("output", type=Path, metavar="OUT.jsonl")
    batch.add_argument("--model", metavar="NAME", help="a model, in place of what the requests name")
    batch.add_argument("--models", metavar="FILE", type=Path, help="the file that names the models [models.yaml]")
    add_settings(batch.add_argument_group("how the model runs, in place of what models.yaml says"))
    batch.set_defaults(handler=_batch)


def _batch(options: argparse.Namespace) -> int:
    contents = look_through(options.input)
    if options.input.exists() and options.output.exists() and options.input.samefile(options.output):
        raise ConfigError("the answers cannot go into the file of the requests")
    spec = find_spec(options.model or _named(contents.models), options.models)
    output = Output(options.output)
    try:
        left = len(contents.ids - output.done)
        if left:
            asyncio.run(_run(LocalServer(spec, configured(spec.engine_config(), options)), options.input, output, left))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(
            f"{len(contents.ids & output.done)} of {len(contents.ids)} are answered; the same command goes on",
            file=sys.stderr,
        )
        return 130
    finally:
        output.close()
    failed = f", {output.failed} of them with an error" if output.failed else ""
    print(f"{options.output} has {len(contents.ids & output.done)} answers{failed}", file=sys.stderr)
    return 1 if output.failed else 0


def _named(models: frozenset[str]) -> str | None:
    if len(models) > 1:
        raise ConfigError(
            f"the requests name {len(models)} models: {', '.join(sorted(models)[:5])}",
            hint="make a file of each model's, or name one for all with --model",
        )
    return next(iter(models), None)


async def _run(server: LocalServer, source: Path, output: Output, left: int) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await server.start()
        with tqdm(total=left, unit="answer", dynamic_ncols=True) as bar:
            requests = read_requests(source)
            await answer_all(server, requests, output, at_once=CONCURRENCY, on_answer=lambda: bar.update())
    finally:
        await server.stop()
