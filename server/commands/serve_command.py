"""`headrace serve`: from what models.yaml and the command line say to the settings of a server, which then runs."""

import argparse
import dataclasses
import logging
import os
from typing import Any

from engine.config import EngineConfig
from engine.errors import ConfigError
from server.commands.banner import Console, ConsoleHandler
from server.commands.serve import ServeSettings, run
from server.commands.serve_options import ADMIN_KEY_VARIABLE, KEY_VARIABLE, add_serve_options
from server.commands.served import Served, choose_served
from server.config.settings import ModelSpec, find_models_file, load_models_file
from server.edge.limits import Limits
from server.edge.queues import QueueLimits
from server.fleet.policy import Residence, Terms
from server.telemetry.logs import LogFormat, formatter


def add_serve_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand; its handler is in the namespace's `handler`."""
    serve = subparsers.add_parser("serve", help="serve models over HTTP", description="Serve models over HTTP.")
    serve.set_defaults(handler=_run)
    add_serve_options(serve)


def _run(options: argparse.Namespace) -> int:
    """Serve until told to end; the exit code. Raises `ConfigError` for what cannot be served."""
    console = Console(as_json=options.log_format == "json")
    _set_up_logging(console, options.log_level, options.log_format)
    served = _served(options)
    for line in served.said:
        console.line(line)
    specs = served.specs
    settings = ServeSettings(
        models=tuple(configured(spec, options) for spec in specs),
        aliases={alias: spec.name for spec in specs for alias in spec.aliases},
        terms={spec.name: terms_of(spec, options) for spec in specs},
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


def terms_of(spec: ModelSpec, options: argparse.Namespace) -> Terms:
    """How a model is served: of images the command line's word goes before its entry's, of idle time behind it."""
    seconds: float | None = options.idle_timeout if spec.idle_timeout is None else spec.idle_timeout
    return Terms(
        defaults=spec.sampling,
        tools=spec.tools,
        images=spec.images if options.remote_images is None else options.remote_images,
        residence=Residence(load=spec.load, idle_timeout=seconds or None),  # 0 says of one model that it never is
    )


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
