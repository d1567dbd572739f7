"""The suite's table, from what its jobs found."""

from typing import Any

ERROR_WIDTH = 70


def rows_of(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Name, part, what was measured, share of the ceiling."""
    return [[name, part, measured(part, one), share(one)] for name, parts in found.items()
            for part, one in parts.items()]  # fmt: skip


def measured(part: str, one: dict[str, Any]) -> str:
    """The number that matters of one part."""
    if "error" in one or "left_out" in one:
        return str(one.get("error") or one["left_out"])[:ERROR_WIDTH]
    if part == "ceilings":
        fp8 = one["fp8_flops"]
        rates = f"{one['bytes_per_second'] / 1e12:.2f} TB/s, bf16 {one['flops'] / 1e12:.0f} TFLOP/s"
        return rates + (f", FP8 {fp8 / 1e12:.0f}" if fp8 else "")
    if part == "load" or part.endswith("_seconds"):
        return f"{one['seconds']:.1f} s" + (", launches are dependent" if one.get("dependent_launches") else "")
    if part == "start":
        return f"{one['first_answer_seconds']:.1f} s to the first answer"
    if part == "sleep":
        awake = f"awake in {one['wake_seconds']:.2f} s, first token {one['first_token_seconds']:.2f} s later"
        return f"asleep in {one['sleep_seconds']:.2f} s, {awake} ({one['host_bytes'] / 2**30:.1f} GiB)"
    if part == "image encode":
        return f"{one['milliseconds']:.1f} ms ({one['tokens']:.0f} tokens)"
    if part == "image first token":
        seen, turn = one["seen_milliseconds"], one["turn_milliseconds"]
        return f"{one['milliseconds']:.1f} ms, seen before {seen:.1f}, in the next turn {turn:.1f}"
    if part == "image beside streams":
        return f"p99 {one['milliseconds_p99']:.1f} ms between tokens, {one['quiet_milliseconds_p99']:.1f} without"
    if part.startswith("idle"):
        return f"idle {one['idle']:.1%}, waiting for the host {one['waiting']:.1%}"
    if "eager_microseconds" in one:
        return f"{one['microseconds']:.1f} us recorded, {one['eager_microseconds']:.1f} eager"
    if "microseconds" in one:
        return f"{one['microseconds']:.1f} us"
    requests = f" ({one['requests']:.0f} requests)" if "requests" in one else ""
    return f"{one['tokens_per_second']:,.0f} tok/s{requests}"


def share(one: dict[str, Any]) -> str:
    """Of the ceiling, where there is one."""
    value = one.get("share_of_ceiling")
    return "" if value is None else f"{value:.0%}"
