"""What the operator sees while a model loads, on a terminal and elsewhere."""

import io
import json
import logging

import msgspec

from engine.errors import ConfigError, ModelLoadError
from engine.messages import Loading
from server.commands.banner import Console, ConsoleHandler, memory_line, ready_banner
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy, ModelState
from tests.server.fakes import engine_config
from tests.server.prompt.test_plan import engine_info


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def handle_at(stage: str, fraction: float | None) -> EngineHandle:
    handle = EngineHandle(engine_config("m"), FleetPolicy())
    handle.expect()
    handle.progress = Loading(stage, fraction)
    return handle


def test_elsewhere_each_stage_is_one_line() -> None:
    stream = io.StringIO()
    console = Console(stream)
    for stage, fraction in (("reading", 0.0), ("reading", 0.5), ("fusing", None), ("reading", 0.9)):
        console.progress(handle_at(stage, fraction))
    assert stream.getvalue() == "m: reading\nm: fusing\nm: reading\n"


def test_on_a_terminal_a_bar_is_redrawn_and_lines_do_not_tear_it() -> None:
    stream = Terminal()
    console = Console(stream)
    logger = logging.Logger("test")
    logger.addHandler(ConsoleHandler(console))
    console.progress(handle_at("reading", 0.5))
    logger.warning("a line")
    console.progress(handle_at("fusing", None))
    console.error(ConfigError("wrong", hint="mend it"))
    clear = "\r\x1b[K"
    assert stream.getvalue() == (
        f"{clear}m: [############............]  50% reading"
        f"{clear}a line\n"
        f"{clear}m: fusing ...{clear}headrace: wrong\n  mend it\n"
    )


def test_an_error_of_a_model_is_said_once_until_it_is_well() -> None:
    stream = io.StringIO()
    console = Console(stream)
    for _ in range(3):
        console.error(ConfigError("gone"), "a")
    console.error(ConfigError("gone"), "b")
    console.error(ConfigError("still gone"), "a")
    console.error(ConfigError("gone"), "a")
    console.forget_error("a")
    console.error(ConfigError("gone"), "a")
    said = ["a: gone", "b: gone", "a: still gone", "a: gone", "a: gone"]
    assert stream.getvalue().splitlines() == [f"headrace: {line}" for line in said]


def test_nothing_is_drawn_once_it_is_loaded() -> None:
    stream = Terminal()
    handle = handle_at("reading", 0.5)
    handle.state = ModelState.READY
    Console(stream).progress(handle)
    assert stream.getvalue() == ""


def test_a_closed_terminal_does_not_stop_the_server() -> None:
    stream = io.StringIO()
    stream.close()
    console = Console(io.StringIO())
    console._stream = stream
    console.line("nobody reads this")


def test_everything_on_the_console_is_json_where_that_is_asked_for() -> None:
    stream = Terminal()
    console = Console(stream, as_json=True)
    console.progress(handle_at("reading weights", 0.5))
    console.line("ready\n  at an address")
    console.error(ConfigError("no", hint="do this"))
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "m: reading weights" and second["message"] == "ready\n  at an address"
    assert third["message"] == "headrace: no\n  do this" and third["level"] == "ERROR"


def test_one_line_says_what_takes_which_memory() -> None:
    cpu = engine_info(block_size=16, num_blocks=1000, context=8000, kv_bytes=2**30, weights_bytes=2**28)
    assert memory_line(cpu) == "weights 256 MiB, KV cache 1.00 GiB: 16,000 tokens, 2.0 contexts of 8,000"
    cuda = msgspec.structs.replace(cpu, activation_bytes=3 * 2**29, graph_bytes=2**29, image_bytes=2**28)
    line = "weights 256 MiB, a step 1.50 GiB, graphs 512 MiB, images 256 MiB, KV cache 1.00 GiB:"
    assert memory_line(cuda).startswith(line)


def test_what_failed_is_no_part_of_what_is_ready() -> None:
    handle = handle_at("reading", None)
    banner = ready_banner("http://here", [handle], version="1", needs_key=False)
    assert banner == "Headrace 1 is ready at http://here/v1"
    handle.refuse(ModelLoadError("there is no such directory"))
    lines = ready_banner("http://here", [handle], version="1", needs_key=False).splitlines()
    assert lines[1:] == ["  missing   m: could not be loaded, and will be tried again"]
