"""`headrace bench`: what a server and its engine do, measured."""

import argparse
import os
from types import ModuleType

from server.benchmarks import conformance, latency, peers, schedule, serve, startup, structured, throughput
from server.benchmarks.outcome import add_outputs, check_outputs, publish
from server.commands.running import DEFAULT_URL, KEY_VARIABLES, URL_VARIABLE, add_url

KINDS: dict[str, ModuleType] = {
    "serve": serve, "throughput": throughput, "latency": latency, "structured": structured, "startup": startup,
    "schedule": schedule, "peers": peers, "conformance": conformance,
}  # fmt: skip
OF_SERVERS = ("serve", "conformance")
"""Those that ask at an address."""


def add_bench_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand with its own; their handlers are in the namespace's `handler`."""
    bench = subparsers.add_parser(
        "bench",
        help="measure a server or a model",
        description="Measure a server or a model. docs/benchmarks.md says what each figure means.",
    )
    kinds = bench.add_subparsers(title="what to measure", metavar="WHAT")
    bench.set_defaults(handler=lambda options: _say_what(bench))
    for name, module in KINDS.items():
        parser = kinds.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in OF_SERVERS:
            add_url(parser)
            parser.add_argument("--model", default="", metavar="NAME", help="[the first that the server lists]")
            parser.add_argument("--api-key", default="", metavar="KEY", help=f"[{KEY_VARIABLES[1]}]")
        module.add_arguments(parser)
        add_outputs(parser)
        parser.set_defaults(handler=lambda options, module=module: _measure(options, module))


def _say_what(bench: argparse.ArgumentParser) -> int:
    bench.print_help()
    return 2


def _measure(options: argparse.Namespace, module: ModuleType) -> int:
    if "url" in options:
        options.url = options.url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        options.api_key = options.api_key or next(iter(os.environ.get(KEY_VARIABLES[1], "").split()), "")
    check_outputs(options)
    return publish(module.run(options), options)
