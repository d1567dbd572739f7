"""The options of `headrace serve`, in groups, and what each may be."""

import argparse
from pathlib import Path
from typing import get_args

from engine.config import Activations, Dtype, Graphs, KvDtype, Quantization, parse_memory
from engine.errors import ConfigError
from server.config.image_policy import RemotePolicy, parse_policy
from server.context import LOAD_WAIT_SECONDS
from server.edge.limits import Limits
from server.edge.queues import QueueLimits
from server.telemetry.logs import LogFormat

KEY_VARIABLE = "HEADRACE_API_KEY"
ADMIN_KEY_VARIABLE = "HEADRACE_ADMIN_API_KEY"


def add_serve_options(serve: argparse.ArgumentParser) -> None:
    """Add them all; `serve_command` says what comes of each."""
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
