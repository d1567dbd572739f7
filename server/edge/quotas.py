"""What one key may ask for: requests and tokens a minute, and answers at once. Refusals are OpenAI's 429.

A limit of so many a minute is a bucket that holds a minute's worth and fills evenly. Tokens are reserved when they are
estimated, before anything is computed, and settled when the answer has ended; what was then more than reserved is owed,
and paid before the next request. Time is a monotonic clock's.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.config.keys_file import KeyEntry
from server.protocol.errors import ApiError

MINUTE = 60.0
NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients do not send a request again that is answered with this."""
BUSY_RETRY_SECONDS = 1.0
"""When a place among a key's answers may be free, as long as none of its answers has ended."""
_ROUNDING = 1e-9

Unit = Literal["requests", "tokens"]


class Bucket:
    """So many of something a minute."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock = clock
        self._level = float(limit)
        self._at = clock()

    @property
    def level(self) -> float:
        """What may be taken now; less than nothing where more was used than reserved."""
        now = self._clock()
        self._level = min(float(self.limit), self._level + max(0.0, now - self._at) * self.limit / MINUTE)
        self._at = now
        return self._level

    @property
    def seconds_until_full(self) -> float:
        """Until all of the limit may be taken again, if nothing more is taken."""
        return (self.limit - self.level) * MINUTE / self.limit if self.limit else 0.0

    def seconds_until(self, amount: float) -> float:
        """How long to wait for so much; infinite for more than the limit."""
        if amount > self.limit:
            return math.inf
        missing = amount - self.level
        return 0.0 if missing <= _ROUNDING else missing * MINUTE / self.limit

    def take(self, amount: float) -> None:
        """Take so much, be it there or not; a negative amount is given back."""
        self._level = min(float(self.limit), self.level - amount)

    def change_limit(self, limit: int) -> None:
        """What was used of the old limit is used of the new one, but for what goes beyond it."""
        used = self.limit - self.level
        self._level = min(float(limit), max(limit - used, min(self._level, 0.0)))
        self.limit = limit


@dataclass(slots=True)
class Reservation:
    """Tokens set aside for one request, which is to be settled once.

    They go back to where they came from: a limit that was set since knows nothing of them.
    """

    bucket: Bucket | None
    """None where there was no limit."""
    tokens: int

    def settle(self, used: int) -> None:
        """So many were used in the end."""
        if self.bucket is not None:
            self.bucket.take(used - self.tokens)
        self.tokens = used


class Hold:
    """Some of a key's places for answers. `release` may be called any number of times."""

    def __init__(self, account: "Account", answers: int) -> None:
        self._account = account
        self._answers = answers
        account.answers += answers

    def release(self) -> None:
        """Give them back."""
        self._account.answers -= self._answers
        self._answers = 0


class Account:
    """What one key has used of its limits."""

    def __init__(self, entry: KeyEntry | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Without an entry there are no limits."""
        self.answers = 0
        """Those that are admitted and not yet ended."""
        self._clock = clock
        self._buckets: dict[Unit, Bucket] = {}
        self._max_answers: int | None = None
        if entry is not None:
            self.limit(entry)

    def limit(self, entry: KeyEntry) -> None:
        """From now on these limits hold; what was used stays used."""
        self._max_answers = entry.concurrent_answers
        limits: dict[Unit, int | None] = {
            "requests": entry.requests_per_minute, "tokens": entry.tokens_per_minute
        }  # fmt: skip
        for unit, limit in limits.items():
            if limit is None:
                self._buckets.pop(unit, None)
            elif unit in self._buckets:
                self._buckets[unit].change_limit(limit)
            else:
                self._buckets[unit] = Bucket(limit, self._clock)

    @property
    def token_limit(self) -> int | None:
        """Tokens a minute, None where there is no limit."""
        bucket = self._buckets.get("tokens")
        return None if bucket is None else bucket.limit

    @property
    def is_fresh(self) -> bool:
        """Whether nothing is used of any limit."""
        return not self.answers and all(bucket.level >= bucket.limit for bucket in self._buckets.values())

    def take_request(self) -> None:
        """Count a request. Raises `ApiError` 429 if there were enough of them, or no tokens or places are left."""
        self._check_possible()
        if (tokens := self._buckets.get("tokens")) is not None and (wait := tokens.seconds_until(1)) > 0:
            raise _limited("tokens", tokens.limit, wait)
        self._check_answers(1)
        if (requests := self._buckets.get("requests")) is not None:
            if (wait := requests.seconds_until(1)) > 0:
                raise _limited("requests", requests.limit, wait)
            requests.take(1)

    def give_request_back(self) -> None:
        """A request was refused for no fault of its own."""
        if (requests := self._buckets.get("requests")) is not None:
            requests.take(-1)

    def hold(self, answers: int) -> Hold:
        """Take so many places for answers. Raises `ApiError` 429 if there are not so many."""
        self._check_answers(answers)
        return Hold(self, answers)

    def check_tokens(self, least: int) -> None:
        """Raise `ApiError` 429 for a request that may take more than a minute's tokens, however long it waits."""
        limit = self.token_limit
        if limit is not None and least > limit:
            raise ApiError(
                429,
                f"This request may take {least} tokens, and this key has {limit} a minute; shorten the prompt, or ask"
                " for fewer or shorter answers",
                type="tokens",
                code="rate_limit_exceeded",
                headers=dict(NO_RETRY),
                reason="tokens_per_minute",
            )

    def reserve(self, least: int, expected: int) -> Reservation:
        """Set aside what an answer is expected to take, if at `least` that much is within the limit at all.

        Raises `ApiError` 429.
        """
        self.check_tokens(least)
        bucket = self._buckets.get("tokens")
        if bucket is None:
            return Reservation(None, expected)
        tokens = min(expected, bucket.limit)
        if (wait := bucket.seconds_until(tokens)) > 0:
            raise _limited("tokens", bucket.limit, wait, tokens)
        bucket.take(tokens)
        return Reservation(bucket, tokens)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's headers that tell where the limits stand."""
        found = []
        for unit, bucket in self._buckets.items():
            values = {
                "limit": str(bucket.limit),
                "remaining": str(max(0, math.floor(bucket.level + _ROUNDING))),
            }
            if bucket.limit:  # else nothing is ever left
                values["reset"] = duration(bucket.seconds_until_full)
            found += [(f"x-ratelimit-{name}-{unit}".encode(), value.encode()) for name, value in values.items()]
        return found

    def _check_possible(self) -> None:
        """Before anybody is told to wait for one limit: whether another of them is never going to let him in."""
        for unit, bucket in self._buckets.items():
            if bucket.limit < 1:
                raise _limited(unit, bucket.limit, math.inf)
        if self._max_answers == 0:
            self._check_answers(1)

    def _check_answers(self, answers: int) -> None:
        most = self._max_answers
        if most is None or self.answers + answers <= most:
            return
        asked = f", and this request asks for {answers}" if answers > 1 else ""
        wait = BUSY_RETRY_SECONDS if answers <= most else math.inf
        raise ApiError(
            429,
            f"This key may have {most} answer{'' if most == 1 else 's'} at once and has {self.answers} now{asked}",
            type="requests",
            code="rate_limit_exceeded",
            headers=retry_headers(wait),
            reason="concurrent_answers",
        )


def retry_headers(seconds: float) -> dict[str, str]:
    """When to come again, for those who read whole seconds and for those who read more; never, where it is no use."""
    if math.isinf(seconds):
        return dict(NO_RETRY)
    return {"Retry-After": str(max(1, math.ceil(seconds))), "retry-after-ms": str(math.ceil(seconds * 1000))}


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`, `2h6m41s`."""
    milliseconds = math.ceil(seconds * 1000 - _ROUNDING)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, rest_of_hour = divmod(minutes, 60)
    return f"{hours}h" * bool(hours) + f"{rest_of_hour}m" * bool(minutes) + f"{rest / 1000:g}s"


def _limited(unit: Unit, limit: int, wait: float, asked: int = 1) -> ApiError:
    for_what = f" and this request may take {asked}" if asked > 1 else ""
    then = "" if math.isinf(wait) else f"; there is room in {duration(wait)}"
    return ApiError(
        429,
        f"This key has {limit} {unit} a minute, too few of which are left{for_what}{then}",
        type=unit,
        code="rate_limit_exceeded",
        headers=retry_headers(wait),
        reason=f"{unit}_per_minute",
    )
