"""The `headrace` command."""

import argparse
import dataclasses
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from engine.config import Activations, Dtype, EngineConfig, Graphs, KvDtype, Quantization, parse_memory
from engine.errors import ConfigError, HeadraceError
from server.commands.banner import Console, ConsoleHandler
from server.commands.batch import add_batch_parser
from server.commands.bench import add_bench_parser
from server.commands.keys import add_keys_parser
from server.commands.models import add_models_parser
from server.commands.remote import add_remote_parsers
from server.commands.serve import ServeSettings, run
from server.commands.served import Served, choose_served
from server.commit import version_line
from server.config.image_policy import RemotePolicy, parse_policy
from server.config.settings import ModelSpec, find_models_file, load_models_file
from server.context import LOAD_WAIT_SECONDS
from server.edge.limits import Limits
from server.edge.queues import QueueLimits
from server.fleet.policy import Residence
from server.telemetry.logs import LogFormat, formatter

KEY_VARIABLE = "HEADRACE_API_KEY"
ADMIN_KEY_VARIABLE = "HEADRACE_ADMIN_API_KEY"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code. 1 for what the operator can mend, 2 for wrong usage."""
    console = Console()
    options = build_parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        code: int = options.handler(options)
    except HeadraceError as error:
        console.error(error)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # What reads the output has seen enough; Python must not complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


_LIKE_NUMBERS = re.compile(r"-\d(?!\d*\.?\d*$)")
"""What begins as a negative number and goes on as something else. No option is called so."""


def _joined(words: Sequence[str]) -> list[str]:
    """The words of a command line, `--gpu -1xh200` as `--gpu=-1xh200`.

    argparse would take the second for an option, and say of the first only that it has no value.
    """
    joined: list[str] = []
    for word in words:
        if _LIKE_NUMBERS.match(word) and joined and re.fullmatch("--[a-z-]*[a-z]", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="headrace", description="A self-hosted, OpenAI-compatible chat-completion server."
    )
    parser.add_argument(
        "--version", action=_VersionAction, help="print the version, with its commit where that is known"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve_parser(commands)
    add_models_parser(commands)
    add_batch_parser(commands)
    add_keys_parser(commands)
    add_remote_parsers(commands)
    add_bench_parser(commands)
    return parser


class _VersionAction(argparse.Action):
    """Prints the version and ends: only whoever asks waits for git."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version_line())
        parser.exit()


def _add_serve_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser("serve", help="serve models over HTTP", description="Serve models over HTTP.")
    serve.set_defaults(handler=_serve)
    serve.add_argument(
        "names", nargs="*", metavar="MODEL",
        help="what to load at start: names of models.yaml, directories, .gguf files or hub ids"
        " [those with load: startup]",
    )  # fmt: skip
    serve.add_argument(
        "--only",
        action="store_true",
        help="serve these alone; the other models of models.yaml are not loaded on demand",
    )
    serve.add_argument("--models", metavar="FILE", type=Path, help="the file that names the models [models.yaml]")
    for add in (_add_where, _add_clients, _add_how, _add_together, _add_limits, _add_seeing):
        add(serve)


def _add_where(serve: argparse.ArgumentParser) -> None:
    where = serve.add_argument_group("where to listen")
    where.add_argument("--host", default="127.0.0.1", help="address [%(default)s; 0.0.0.0 for all]")
    where.add_argument("--port", type=_port, default=8000, help="port [%(default)s; 0 for any free one]")
    where.add_argument(
        "--unix-socket",
        type=Path,
        metavar="PATH",
        help="listen on a socket of the file system in place of host and port",
    )
    where.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a Host name to answer to, besides our own"
    )
    where.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help=f"a key that clients must send; {KEY_VARIABLE} may hold some, separated by spaces",
    )  # fmt: skip
    where.add_argument(
        "--admin-api-key", action="append", default=[], metavar="KEY",
        help=f"a key that may load and unload models as well; {ADMIN_KEY_VARIABLE} may hold some",
    )  # fmt: skip
    where.add_argument(
        "--keys", type=Path, metavar="FILE",
        help="a file of keys with names, rights and limits; it is read again when it changes, and on SIGHUP",
    )  # fmt: skip
    where.add_argument(
        "--insecure", action="store_true", help="ask for no key although other machines can reach the server"
    )
    where.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN",
        help="an origin whose pages may use the server from a browser, such as https://app.example; * for any",
    )  # fmt: skip
    where.add_argument(
        "--no-playground", action="store_true", help="leave out the pages for a browser at the root of the server"
    )


def _add_clients(serve: argparse.ArgumentParser) -> None:
    clients = serve.add_argument_group("clients that cannot be changed")
    clients.add_argument(
        "--served-name", action="append", default=[], metavar="NAME",
        help="what the model is called, besides its own names; * stands for any text",
    )  # fmt: skip
    clients.add_argument(
        "--unknown-fields", choices=("refuse", "ignore"), default="refuse",
        help="what to do with fields that do not exist [%(default)s; x-headrace-unused names ignored ones]",
    )  # fmt: skip


def _add_how(serve: argparse.ArgumentParser) -> None:
    how = serve.add_argument_group("how to run, instead of what models.yaml says")
    how.add_argument("--dtype", choices=get_args(Dtype), help="number format of weights and arithmetic")
    how.add_argument("--quantization", choices=get_args(Quantization), help="of the weights: as they are, none or FP8")
    how.add_argument("--kv-dtype", choices=get_args(KvDtype), help="of the KV cache: the model's, or FP8")
    how.add_argument(
        "--activations", choices=get_args(Activations),
        help="what they are rounded to where a CPU multiplies a GGUF file's own weights",
    )  # fmt: skip
    how.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    how.add_argument(
        "--tensor-parallel", type=_positive, metavar="N", help="share each model among so many GPUs, from --device on"
    )
    how.add_argument("--context", type=_positive, metavar="TOKENS", help="longest prompt plus answer")
    how.add_argument("--memory", help="KV cache: auto, a fraction such as 0.5, or a size such as 4GiB")
    how.add_argument("--threads", type=_positive, help="CPU threads of each engine")
    how.add_argument("--max-num-seqs", type=_positive, metavar="N", help="most sequences in one step")
    how.add_argument(
        "--graphs", choices=get_args(Graphs),
        help="record steps on a GPU: at load (auto, true), when first needed (lazy), or not",
    )  # fmt: skip


def _add_together(serve: argparse.ArgumentParser) -> None:
    together = serve.add_argument_group("models that come and go")
    together.add_argument(
        "--memory-budget", type=_memory, default="auto", metavar="MEMORY",
        help="what all models of a device may take together: auto, a fraction such as 0.5, or a size such as 20GiB"
        " [auto: what is free at start, less a tenth on a CPU]",
    )  # fmt: skip
    together.add_argument(
        "--idle-timeout", type=_seconds, metavar="SECONDS",
        help="end a model that nobody has asked for so long [never; models.yaml may say otherwise of a model]",
    )  # fmt: skip
    together.add_argument(
        "--load-wait", type=_seconds, default=LOAD_WAIT_SECONDS, metavar="SECONDS",
        help="how long a request whose answer is not streamed waits for its model to be loaded [%(default)s]",
    )  # fmt: skip


def _add_limits(serve: argparse.ArgumentParser) -> None:
    limits = serve.add_argument_group("limits")
    limits.add_argument(
        "--remote-images", type=_policy, metavar="WHERE",
        help="where images may be fetched from: off, public, or hosts with commas between [as models.yaml has it: off]",
    )  # fmt: skip
    limits.add_argument(
        "--max-requests", type=_positive, default=Limits().max_requests, metavar="N",
        help="running and waiting answers beyond which requests are refused [%(default)s]",
    )  # fmt: skip
    limits.add_argument(
        "--max-queue", type=_positive, default=QueueLimits().max_queue, metavar="N",
        help="answers that may wait for one model [%(default)s; models.yaml may say otherwise of a model]",
    )  # fmt: skip
    limits.add_argument(
        "--max-queue-tokens", type=_positive, default=QueueLimits().max_queue_tokens, metavar="N",
        help="tokens of the prompts that may wait for one model [%(default)s; models.yaml likewise]",
    )  # fmt: skip
    limits.add_argument(
        "--queue-timeout", type=_seconds, metavar="SECONDS",
        help="how long a request may wait for its first token [no limit; models.yaml likewise]",
    )  # fmt: skip
    limits.add_argument(
        "--request-timeout", type=_seconds, metavar="SECONDS",
        help="how long a request may take in all [no limit; models.yaml likewise, and timeout in a request]",
    )  # fmt: skip
    limits.add_argument(
        "--max-connections", type=_positive, metavar="N",
        help="open connections beyond which those without a request are ended [as many as ulimit -n allows]",
    )  # fmt: skip
    limits.add_argument(
        "--drain", type=_seconds, default=5.0, metavar="SECONDS",
        help="what running requests get to finish when the server is told to end [%(default)s]",
    )  # fmt: skip


def _add_seeing(serve: argparse.ArgumentParser) -> None:
    seeing = serve.add_argument_group("what is told of the server's work")
    seeing.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    seeing.add_argument(
        "--log-format", choices=get_args(LogFormat), default="text",
        help="lines for people, or a JSON object in each [%(default)s]",
    )  # fmt: skip
    seeing.add_argument(
        "--no-vllm-names", action="store_true",
        help="leave the series under the names that vLLM has for them out of /metrics",
    )  # fmt: skip
    seeing.add_argument(
        "--traces", metavar="URL",
        help="send a span of every request there by OTLP, such as to http://localhost:4318/v1/traces;"
        " needs headrace[otel] [no traces]",
    )  # fmt: skip


def _serve(options: argparse.Namespace) -> int:
    console = Console(as_json=options.log_format == "json")
    _set_up_logging(console, options.log_level, options.log_format)
    served = _served(options)
    for line in served.said:
        console.line(line)
    specs = served.specs
    settings = ServeSettings(
        models=tuple(configured(spec, options) for spec in specs),
        aliases={alias: spec.name for spec in specs for alias in spec.aliases},
        defaults={spec.name: spec.sampling for spec in specs},
        tools={spec.name: spec.tools for spec in specs if spec.tools is not None},
        images={spec.name: spec.images if options.remote_images is None else options.remote_images for spec in specs},
        residence={spec.name: Residence(load=spec.load, idle_timeout=_idle_timeout(spec, options)) for spec in specs},
        queues={spec.name: queue_limits(spec, options) for spec in specs},
        sizes={spec.name: spec.size for spec in specs if spec.size is not None},
        memory_budget=options.memory_budget,
        load_wait=options.load_wait,
        host=options.host,
        port=options.port,
        unix_socket=options.unix_socket,
        api_keys=(*options.api_key, *os.environ.get(KEY_VARIABLE, "").split()),
        admin_keys=(*options.admin_api_key, *os.environ.get(ADMIN_KEY_VARIABLE, "").split()),
        keys_file=options.keys,
        insecure=options.insecure,
        cors_origins=tuple(options.cors_origin),
        allowed_hosts=tuple(options.allowed_host),
        drain_seconds=options.drain,
        limits=Limits(max_requests=options.max_requests, max_connections=options.max_connections),
        ignore_unknown_fields=options.unknown_fields == "ignore",
        playground=not options.no_playground,
        vllm_names=not options.no_vllm_names,
        traces=options.traces,
    )
    return run(settings, console)


def _served(options: argparse.Namespace) -> Served:
    """The models to serve. Who names directories or hub ids needs no models.yaml."""
    path = options.models or find_models_file()
    if path is None and not options.names:
        raise ConfigError("there is no models.yaml here", hint="name one with --models FILE, or name a model")
    file = None if path is None else load_models_file(path)
    return choose_served(options.names, file, called=options.served_name, only=options.only)


def _idle_timeout(spec: ModelSpec, options: argparse.Namespace) -> float | None:
    """None where it never is idle for too long: 0 says so of one model."""
    seconds: float | None = options.idle_timeout if spec.idle_timeout is None else spec.idle_timeout
    return seconds or None


def queue_limits(spec: ModelSpec, options: argparse.Namespace) -> QueueLimits:
    """What the model's entry says of its queue and its time, and where it says nothing, the command line."""

    def chosen(name: str) -> Any:
        of_model = getattr(spec, name)
        return getattr(options, name) if of_model is None else of_model

    return QueueLimits(
        max_queue=chosen("max_queue"),
        max_queue_tokens=chosen("max_queue_tokens"),
        queue_timeout=chosen("queue_timeout") or None,
        request_timeout=chosen("request_timeout") or None,
    )


_CONFIGURES = (
    "dtype", "quantization", "kv_dtype", "activations", "device", "tensor_parallel", "context", "memory", "threads",
    "max_num_seqs", "graphs",
)  # fmt: skip


def configured(spec: ModelSpec, options: argparse.Namespace) -> EngineConfig:
    """The model's settings, with what the command line says in their place."""
    given = {name: getattr(options, name) for name in _CONFIGURES if getattr(options, name) is not None}
    config = dataclasses.replace(spec, **given).engine_config()
    # Who is too many is told before; the engine's own bound must not be the narrower one.
    most = max(config.max_queued_requests, getattr(options, "max_requests", 0))
    return dataclasses.replace(config, max_queued_requests=most)


def _set_up_logging(console: Console, level: str, form: LogFormat) -> None:
    handler = ConsoleHandler(console)
    handler.setFormatter(formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # uvicorn tells at length what our own lines say, and asyncio's debug lines are about asyncio.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL if level != "debug" else logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _policy(text: str) -> RemotePolicy:
    try:
        return parse_policy([word.strip() for word in text.split(",")], [])
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _memory(text: str) -> str:
    try:
        parse_memory(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.message) from error
    return text


def _port(text: str) -> int:
    return _number(text, 0, 65535)


def _positive(text: str) -> int:
    return _number(text, 1, 2**31 - 1)


def _number(text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"must be seconds from 0 to 86400, got {text!r}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
