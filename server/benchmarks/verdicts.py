"""What a server made of one field: done, refused, passed over, or done wrongly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.benchmarks.exchange import Asker, BrokenError, RefusedError

Verdict = Literal["honoured", "refused", "unnamed", "ignored", "wrong"]
MEANINGS: dict[Verdict, str] = {
    "honoured": "the answer is as the field's rule says",
    "refused": "a status from 400 to 499 that names the field",
    "unnamed": "such a status, which does not say what it is about",
    "ignored": "status 200, and the answer is as if the field were not there",
    "wrong": "status 200 and an answer that is neither, a status from 500 on, or no answer",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, and what it rests on."""

    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One field in one use."""

    field: str
    use: str
    rule: str
    """When it counts as honoured, as a sentence without its end."""
    judge: Callable[[Asker], Finding]
    expects_refusal: bool = False
    """Whether the rule is that the request is refused."""


def honoured() -> Finding:
    """It is as the rule says."""
    return Finding("honoured")


def ignored(detail: str) -> Finding:
    """Nothing came of it."""
    return Finding("ignored", detail)


def wrong(detail: str) -> Finding:
    """Something else came of it."""
    return Finding("wrong", detail)


def judged(check: Check, asker: Asker) -> Finding:
    """Ask, and judge; never raises for what a server does."""
    try:
        found = check.judge(asker)
    except RefusedError as refusal:
        is_named = refusal.names(check.field.rpartition(".")[2])
        if check.expects_refusal:
            return Finding("honoured") if is_named else Finding("unnamed", str(refusal))
        return Finding("refused" if is_named else "unnamed", str(refusal))
    except BrokenError as broken:
        return wrong(str(broken))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return wrong(f"an answer of another shape: {type(error).__name__} {error}")
    if check.expects_refusal and found.verdict == "honoured":
        return ignored("it was answered")
    return found
