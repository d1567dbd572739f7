"""Load on any OpenAI-compatible chat endpoint, over streaming HTTP: `headrace bench serve`.

With --concurrency so many clients send one request after another. With --rate requests arrive at random times, so many
a second on average, whether others have been answered or not, which is how users come. Output tokens are the server's
own usage counts where every answer had them, else chunks with text; the table says which. Inter-token latency is the
time between two chunks with text.
"""

import argparse
import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from engine.errors import ConfigError
from server.benchmarks.amounts import count, json_object, not_negative, positive, size_of, whole
from server.benchmarks.attack import attacks
from server.benchmarks.charts import Chart, Line, Lines
from server.benchmarks.chat_stream import Endpoint, Reply
from server.benchmarks.figures import CURVE, PERCENTILES, Goal, combined, scatter, summarise
from server.benchmarks.image_times import ImageTimes
from server.benchmarks.load import Run, Send, closed_loop, open_loop
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.pictures import make_picture
from server.benchmarks.progress import Shown
from server.benchmarks.request import body_of
from server.benchmarks.workload import add_workload, workload_of

HELP = "put a running server under load"
REQUESTS_PER_CLIENT = 4
OPEN_SECONDS = 30.0
"""How long requests arrive at a rate, where nothing else is said."""
LEAST_REQUESTS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options, but those that name the server."""
    load = add_clients(parser)
    load.add_argument(
        "--rate", type=positive, nargs="+", default=[], metavar="R",
        help="in place of clients: requests a second that arrive at random times",
    )  # fmt: skip
    load.add_argument(
        "--duration", type=positive, default=0.0, metavar="SECONDS",
        help="in which requests begin, in place of a number; those under way are waited for",
    )  # fmt: skip
    load.add_argument("--repeats", type=count, default=1, metavar="N", help="of each level; medians are shown [1]")
    add_workload(parser)
    _add_body(parser)
    _add_goal(parser)
    attack = parser.add_argument_group("a long prompt beside steady streams")
    attack.add_argument("--attack", action="store_true", help="measure that; --concurrency is the number of streams")
    attack.add_argument("--attack-tokens", type=count, default=6000, metavar="N", help="length of the prompt [6000]")
    attack.add_argument("--attack-repeats", type=count, default=3, metavar="N", help="prompts, one after another [3]")
    attack.add_argument(
        "--attack-pause", type=not_negative, default=5.0, metavar="SECONDS", help="of quiet before each [5]"
    )


def add_clients(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """The options of clients that each wait for their answer."""
    load = parser.add_argument_group("how requests arrive")
    load.add_argument(
        "--concurrency", type=count, nargs="+", default=[1, 4, 16], metavar="N",
        help="clients, each with one request after another [1 4 16]",
    )  # fmt: skip
    load.add_argument(
        "--requests", type=count, default=0, metavar="N", help="of each level [4 a client; 30 s of a rate]"
    )
    load.add_argument("--warmup", type=whole, default=2, metavar="N", help="requests before a level, not counted [2]")
    load.add_argument("--timeout", type=positive, default=600.0, metavar="SECONDS", help="a request may take [600]")
    return load


def _add_body(parser: argparse.ArgumentParser) -> None:
    body = parser.add_argument_group("what requests say besides")
    body.add_argument("--temperature", type=float, default=0.0, help="[0]")
    body.add_argument("--ignore-eos", action="store_true", help="go on to --max-tokens; not every server takes it")
    body.add_argument(
        "--extra-body", type=json_object, default={}, metavar="JSON", help="merged in; a null removes a field"
    )
    body.add_argument("--images", type=whole, default=0, metavar="N", help="in each request, all different")
    body.add_argument("--pixels", type=size_of, default=(1024, 1024), metavar="WxH", help="of each image [1024x1024]")


ONLY_CLIENTS: dict[str, Any] = {
    "rate": [], "duration": 0.0, "repeats": 1, "temperature": 0.0, "ignore_eos": False, "images": 0,
    "ttft_limit": None, "itl_limit": None,
}  # fmt: skip
"""What `measure` reads of the other options, where a command has `add_clients` and `add_workload` alone."""


def _add_goal(parser: argparse.ArgumentParser) -> None:
    goal = parser.add_argument_group("goodput: requests a second that keep these limits")
    goal.add_argument("--ttft-limit", type=positive, metavar="MS", help="most time to the first token")
    goal.add_argument(
        "--itl-limit", type=positive, metavar="MS", help="most time between tokens, the mean of an answer"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Measure the server at `options.url`. Raises `ConfigError`, `EndpointError`."""
    if options.duration and options.requests:
        raise ConfigError("--requests and --duration exclude each other")
    if options.rate and options.attack:
        raise ConfigError("--rate and --attack exclude each other")
    endpoint = Endpoint(options.url, api_key=options.api_key)
    options.model = options.model or endpoint.first_model()
    options.label = options.label or options.model
    with Shown() as shown:
        if options.attack:
            return asyncio.run(attacks(endpoint, options, shown))
        return outcome_of(options.label, asyncio.run(measure(endpoint, options, shown)))


async def measure(
    endpoint: Endpoint, options: argparse.Namespace, shown: Shown, *, first: int = 0
) -> list[dict[str, Any]]:
    """The figures of each level, of requests numbered from `first` on."""
    levels = []
    numbers = itertools.count(first)
    for level in options.rate or options.concurrency:
        repeats = []
        for turn in range(options.repeats):
            send = sender(endpoint, options, numbers, turn)
            for _ in range(options.warmup):
                await send()
            times = ImageTimes(endpoint) if options.images else None
            run = await _arrive(send, level, options, shown, turn)
            figures = summarise(run.replies, run.wall, Goal(options.ttft_limit, options.itl_limit))
            figures |= {"client_cpu": run.client_cpu, "sent_late_s": run.latest}
            if times is not None:
                figures["ttft_split_ms"] = times.split(figures)
            repeats.append(figures)
        levels.append({"rate" if options.rate else "concurrency": level, **combined(repeats)})
    return levels


def sender(endpoint: Endpoint, options: argparse.Namespace, numbers: "itertools.count[int]", turn: int) -> Send:
    """Sends the next request each time it is called."""
    workload = workload_of(options, turn=turn)

    async def send() -> Reply:
        number = next(numbers)
        images = [
            await asyncio.to_thread(make_picture, number * options.images + image, options.pixels, seed=options.seed)
            for image in range(options.images)
        ]
        return await endpoint.chat(body_of(options, workload.asked(number), images), timeout=options.timeout)

    return send


async def _arrive(send: Send, level: float, options: argparse.Namespace, shown: Shown, turn: int) -> Run:
    again = f", {turn + 1} of {options.repeats}" if options.repeats > 1 else ""
    if options.rate:
        seconds = options.duration or OPEN_SECONDS
        requests = options.requests or max(LEAST_REQUESTS, round(level * seconds))
        shown.stage(f"{options.label}: {level:g} requests a second{again}", requests)
        return await open_loop(send, level, requests=requests, seed=options.seed + turn, on_reply=shown.advance)
    requests = options.requests or REQUESTS_PER_CLIENT * int(level)
    shown.stage(f"{options.label}: {name_of({'concurrency': level})}{again}", None if options.duration else requests)
    return await closed_loop(
        send, int(level), requests=requests, seconds=options.duration, on_reply=shown.advance
    )  # fmt: skip


def outcome_of(label: str, levels: Sequence[dict[str, Any]]) -> Outcome:
    """Tables and plots of levels."""
    tables = [_table(label, levels)]
    if any(level.get("ttft_split_ms") for level in levels):
        tables.append(_split_table(levels))
    messages = sorted({message for level in levels for message in level["error_messages"]})
    return Outcome(
        kind="serve", label=label, found={"levels": list(levels)}, tables=tuple(tables),
        charts=charts_of({label: levels}), notes=tuple(f"error: {message}" for message in messages),
        has_failed=any(level["errors"] for level in levels),
    )  # fmt: skip


def name_of(level: dict[str, Any]) -> str:
    """A level in words."""
    if "rate" in level:
        return f"{level['rate']:g}/s"
    return f"{level['concurrency']} client{'s' if level['concurrency'] != 1 else ''}"


def _table(label: str, levels: Sequence[dict[str, Any]]) -> Table:
    has_repeats, has_goal = any("repeats" in level for level in levels), any("kept_share" in level for level in levels)
    header = ["load", "tok/s", *(["spread"] if has_repeats else []), "req/s"]
    header += [*(["goodput/s", "kept"] if has_goal else []), "tokens", "by"]
    header += ["TTFT p50", "p95", "p99 ms", "ITL p50", "p95", "p99 ms", "errors"]
    rows = []
    for level in levels:
        cells = [name_of(level), f"{level['output_tokens_per_s']:.1f}", *([scatter(level)] if has_repeats else [])]
        cells.append(f"{level['requests_per_s']:.2f}")
        if has_goal:
            cells += [f"{level['goodput_per_s']:.2f}", f"{level['kept_share']:.0%}"]
        cells += [str(level["output_tokens"]), level["tokens_counted_by"]]
        for name in ("ttft_ms", "itl_ms"):
            cells += [f"{level[name][f'p{p}']:.1f}" if _has_answers(level) else "-" for p in PERCENTILES]
        rows.append([*cells, str(level["errors"])])
    return Table(caption=label, header=header, rows=rows)


def _has_answers(level: dict[str, Any]) -> bool:
    """Whether there is anything that latencies could be of."""
    return bool(level["output_tokens_per_s"])


def _split_table(levels: Sequence[dict[str, Any]]) -> Table:
    parts = list(next(level["ttft_split_ms"] for level in levels if level["ttft_split_ms"]))
    rows = [
        [name_of(level), f"{level['ttft_mean_ms']:.1f}"]
        + [f"{(level['ttft_split_ms'] or {}).get(part, 0):.1f}" for part in parts]
        for level in levels
    ]
    return Table(caption="where the time to the first token goes, ms", header=["load", "mean TTFT", *parts], rows=rows)


def charts_of(found: dict[str, Sequence[dict[str, Any]]]) -> tuple[Chart, ...]:
    """Plots of one server's levels, or of several servers'."""
    charts: list[Chart] = []
    answered = {label: list(filter(_has_answers, levels)) for label, levels in found.items()}
    for title, key in (("Throughput against inter-token latency", "itl_ms"),
                       ("Throughput against time to first token", "ttft_ms")):  # fmt: skip
        lines = tuple(
            Line(
                name=label,
                points=tuple((level[key]["p50"], level["output_tokens_per_s"]) for level in levels),
                labels=tuple(map(name_of, levels)) if len(found) == 1 else (),
            )
            for label, levels in answered.items()
        )
        what = "time between tokens" if key == "itl_ms" else "time to first token"
        charts.append(Lines(title=title, x=f"{what}, median, ms", y="output tokens a second", lines=lines))
    curves = tuple(
        Line(
            name=name_of(level) if len(found) == 1 else f"{label}, {name_of(level)}",
            points=tuple(zip(level["itl_curve_ms"], map(float, CURVE), strict=True)),
            is_marked=False,
        )
        for label, levels in found.items()
        for level in (levels if len(found) == 1 else levels[-1:])
        if level["itl_curve_ms"]
    )
    charts.append(Lines(title="Time between tokens", x="ms", y="percent that are not longer", lines=curves, x_log=True))
    if all("kept_share" in level and "rate" in level for levels in found.values() for level in levels):
        charts.append(_goodput_chart(found))
    return tuple(charts)


def _goodput_chart(found: dict[str, Sequence[dict[str, Any]]]) -> Lines:
    lines = [
        Line(name=label, points=tuple((level["rate"], level["goodput_per_s"]) for level in levels))
        for label, levels in found.items()
    ]
    rates = sorted({level["rate"] for levels in found.values() for level in levels})
    lines.append(Line(name="offered", points=tuple((rate, rate) for rate in rates), is_marked=False))
    return Lines(title="Goodput", x="requests a second, offered", y="in time, a second", lines=tuple(lines))
