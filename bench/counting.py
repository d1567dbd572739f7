"""What seeing costs: counting a token, telling of a request, writing the page of /metrics.

    python -m bench.counting [--models 20] [--json FILE]

In the API process's event loop, but for writing, which has a thread. Each figure is the least of some repeats, in
microseconds of the thread's CPU.
"""

import argparse
import logging
import time
from collections.abc import Callable

from engine.config import EngineConfig
from server.benchmarks.record import circumstances, table, write_json
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy
from server.metrics import Gathered, exposition, gather
from server.telemetry.counters import ModelCounters, ServerCounters
from server.telemetry.logs import JsonFormatter, with_fields
from server.telemetry.meter import AnswerMeter
from server.telemetry.record import RequestRecord

REPEATS = 7


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20, help="models that the page has series of")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    figures = {
        "a token": least(count_tokens, 100_000),
        "a request, counted": least(count_requests, 5_000),
        "a request's line of JSON": least(write_lines, 5_000),
        f"the page of {options.models} models, gathered": least(lambda times: gather_page(times, options.models), 20),
        f"the page of {options.models} models, written": least(lambda times: write_pages(times, options.models), 5),
    }
    print(table(["what", "microseconds"], [[name, f"{value:.2f}"] for name, value in figures.items()]))
    if options.json:
        write_json(options.json, {**circumstances(), "models": options.models, "microseconds": figures})
    return 0


def least(work: Callable[[int], None], times: int) -> float:
    """Microseconds of one of so many, in the fastest of the repeats."""
    found = []
    for _ in range(REPEATS):
        began = time.thread_time()
        work(times)
        found.append((time.thread_time() - began) / times * 1e6)
    return min(found)


def count_tokens(times: int) -> None:
    """One stream's tokens, with the look at the clock that a batch of them costs."""
    meter = AnswerMeter(ModelCounters(), record(), [100], 1)
    for _ in range(times):
        meter.take(0, 1, None, time.monotonic())


def count_requests(times: int) -> None:
    """From the beginning of a request to its end, without its tokens."""
    counters = ModelCounters()
    for _ in range(times):
        told = record()
        meter = AnswerMeter(counters, told, [100], 1)
        meter.take(0, 1, "stop", time.monotonic())
        meter.end(gone=False, queue=0.001, compiled=None, cached_tokens=0)
        told.end(200)


def write_lines(times: int) -> None:
    """Without the write itself."""
    logger, form = logging.getLogger("bench"), JsonFormatter()
    told = record()
    for _ in range(times):
        extra = with_fields(**told.fields())
        form.format(logger.makeRecord("bench", logging.INFO, __file__, 1, "%s", (told.line(),), None, extra=extra))


def gather_page(times: int, num_models: int) -> Gathered:
    """What one look at /metrics costs everybody."""
    policy = FleetPolicy()
    handles = [EngineHandle(EngineConfig(name=f"model-{n}", source=""), policy) for n in range(num_models)]
    counters = ServerCounters()
    return [gather(handles, counters, 0) for _ in range(times)][-1]


def write_pages(times: int, num_models: int) -> None:
    """What it costs the thread that writes."""
    gathered = gather_page(1, num_models)
    for _ in range(times):
        exposition(gathered)


def record() -> RequestRecord:
    """A request that has just come."""
    return RequestRecord("req-0123456789abcdef01234567", "POST", "/v1/chat/completions", model="model-0")


if __name__ == "__main__":
    raise SystemExit(main())
