"""`headrace ps`, `top`, `load`, `unload` and `sleep`: asking a server that runs."""

import argparse
import sys
import time
from typing import Any, TextIO
from urllib.parse import quote

from server.commands.running import RunningServer, add_url, state_words
from server.commands.table import readable_memory, write_table


def add_remote_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommands; their handlers are in the namespace's `handler`."""
    ps = subparsers.add_parser("ps", help="list the models of a running server", description="List a server's models.")
    ps.set_defaults(handler=_ps)
    load = subparsers.add_parser("load", help="load a model of a running server", description="Load a model.")
    load.set_defaults(handler=lambda options: _change(options, "load"))
    unload = subparsers.add_parser("unload", help="put a model away", description="End a model's process.")
    unload.set_defaults(handler=lambda options: _change(options, "unload"))
    top = subparsers.add_parser(
        "top", help="watch a running server", description="Watch a running server's models at work."
    )
    top.add_argument("--once", action="store_true", help="print one picture and end, as if the output is no terminal")
    top.set_defaults(handler=_top)
    sleep = subparsers.add_parser(
        "sleep", help="free the GPU of a model, to have it back soon", description="Let a model sleep."
    )
    sleep.set_defaults(handler=lambda options: _change(options, "sleep"))
    for parser in (ps, top, load, unload, sleep):
        add_url(parser)
    for parser in (load, unload, sleep):
        parser.add_argument("name", metavar="MODEL", help="its name or an alias")


def _ps(options: argparse.Namespace) -> int:
    """Print the table."""
    with RunningServer(options.url) as server:
        models = server.ask("GET", "/v1/models")["data"]
    print_models(models, sys.stdout, now=time.time())
    return 0


def _top(options: argparse.Namespace) -> int:
    from server.commands.top import run  # what it draws with takes its time to be imported

    return run(options.url, once=options.once)


def print_models(models: list[dict[str, Any]], out: TextIO, *, now: float) -> None:
    """Write a server's models as a table; `now` is in seconds since 1970."""
    rows = [("MODEL", "STATE", "LOAD", "MEMORY", "DEVICE", "CONTEXT", "REQUESTS", "USED")]
    for model in models:
        memory, used = model["memory_bytes"], model["last_used"]
        rows.append(
            (
                model["id"],
                state_words(model),
                model["load"],
                "-" if memory is None else readable_memory(memory),
                model.get("device") or "-",
                str(model.get("context_length") or "-"),
                str(model["requests"]),
                "never" if used is None else f"{_readable_time(max(0.0, now - used))} ago",
            )
        )
    write_table(rows, out)
    for model in models:
        if model["error"]:
            out.write(f"\n{model['id']}: {model['error']}\n")


def _change(options: argparse.Namespace, verb: str) -> int:
    """Load a model, unload it or let it sleep, telling each stage once."""
    told = ""
    path = f"/admin/models/{quote(options.name, safe='/')}/{verb}"
    with RunningServer(options.url) as server:
        for model in server.events(path):
            words = f"{model['id']}: {state_words(model)}"
            if words != told:
                print(words, flush=True)
            told = words
    return 0


def _readable_time(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
