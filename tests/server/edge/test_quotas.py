"""The limits of a key, by a clock of our own."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from server.config.keys_file import KeyEntry
from server.edge.quotas import MINUTE, Account, Bucket, Hold, Reservation, duration
from server.protocol.errors import ApiError


@dataclass
class Clock:
    now: float = 1e6

    def __call__(self) -> float:
        return self.now


def entry(**limits: int | None) -> KeyEntry:
    return KeyEntry(name="a", digest=b"", **limits)  # type: ignore[arg-type]


def refusal(account: Account, tokens: int = 0, answers: int = 0) -> ApiError:
    with pytest.raises(ApiError) as caught:
        if tokens:
            account.reserve(tokens, tokens)
        elif answers:
            account.hold(answers)
        else:
            account.take_request()
    assert caught.value.status == 429 and caught.value.code == "rate_limit_exceeded"
    return caught.value


def test_requests_come_back_one_by_one() -> None:
    clock = Clock()
    account = Account(entry(requests_per_minute=3), clock)
    for _ in range(3):
        account.take_request()
    error = refusal(account)
    assert (error.type, error.headers["Retry-After"], error.headers["retry-after-ms"]) == ("requests", "20", "20000")
    clock.now += 19.9
    assert refusal(account).headers["Retry-After"] == "1"
    clock.now += 0.1
    account.take_request()
    refusal(account)


def test_a_limit_of_nothing_is_never_reset() -> None:
    account = Account(entry(requests_per_minute=0, tokens_per_minute=5), Clock())
    told = dict(account.headers())
    assert told[b"x-ratelimit-limit-requests"] == told[b"x-ratelimit-remaining-requests"] == b"0"
    assert b"x-ratelimit-reset-requests" not in told and told[b"x-ratelimit-reset-tokens"] == b"0ms"
    assert "Retry-After" not in refusal(account).headers


def test_answers_at_once_are_counted_in_words() -> None:
    account = Account(entry(concurrent_answers=1), Clock())
    assert str(refusal(account, answers=2)) == (
        "This key may have 1 answer at once and has 0 now, and this request asks for 2"
    )
    account.hold(1)
    assert str(refusal(account, answers=1)) == "This key may have 1 answer at once and has 1 now"


def test_tokens_are_reserved_and_settled() -> None:
    clock = Clock()
    account = Account(entry(tokens_per_minute=600), clock)
    first = account.reserve(400, 400)
    error = refusal(account, tokens=300)
    assert error.type == "tokens" and error.headers["Retry-After"] == "10"
    first.settle(100)
    second = account.reserve(300, 300)
    second.settle(900)  # the answer took more than was reserved
    second.settle(900)
    assert dict(account.headers())[b"x-ratelimit-remaining-tokens"] == b"0"
    assert refusal(account).type == "tokens"
    clock.now += 41
    account.take_request()


def test_a_guess_is_cut_to_the_limit_and_what_is_said_is_not() -> None:
    account = Account(entry(tokens_per_minute=100), Clock())
    account.reserve(60, 5000).settle(60)
    error = refusal(account, tokens=101)
    assert error.headers == {"x-should-retry": "false"} and "101" in str(error) and "100" in str(error)


@pytest.mark.parametrize("limits", [{"requests_per_minute": 0}, {"tokens_per_minute": 0}, {"concurrent_answers": 0}])
def test_a_limit_of_nothing_lets_nothing_pass(limits: dict[str, int]) -> None:
    clock = Clock()
    account = Account(entry(**limits), clock)
    for _ in range(3):
        assert refusal(account).headers == {"x-should-retry": "false"}
        clock.now += 1e6
    assert all(b"inf" not in value and b"nan" not in value for _, value in account.headers())


@pytest.mark.parametrize("never", ["requests_per_minute", "concurrent_answers"])
def test_nobody_waits_for_one_limit_whom_another_never_lets_in(never: str) -> None:
    account = Account(entry(**{"tokens_per_minute": 1, never: 0}), Clock())
    account.reserve(1, 1)  # its tokens will come back
    with pytest.raises(ApiError) as caught:
        account.take_request()
    assert "Retry-After" not in caught.value.headers


def test_answers_at_once() -> None:
    account = Account(entry(concurrent_answers=4), Clock())
    hold = account.hold(3)
    assert "Retry-After" in refusal(account, answers=2).headers
    assert "Retry-After" not in refusal(account, answers=5).headers
    account.hold(1)
    assert refusal(account).type == "requests"
    for _ in range(2):
        hold.release()
    account.take_request()
    assert account.answers == 1


def test_what_was_used_stays_used_when_limits_change() -> None:
    account = Account(entry(requests_per_minute=10), Clock())
    for _ in range(8):
        account.take_request()
    account.limit(entry(requests_per_minute=20))
    assert dict(account.headers())[b"x-ratelimit-remaining-requests"] == b"12"
    account.limit(entry(requests_per_minute=5))
    assert refusal(account).headers["Retry-After"] == "12"
    account.limit(entry())
    account.take_request()
    assert account.headers() == []


def test_a_new_limit_gets_nothing_back_that_was_not_taken_from_it() -> None:
    account = Account(entry(), Clock())
    unlimited = account.reserve(2000, 2000)
    account.limit(entry(tokens_per_minute=600))
    limited = account.reserve(500, 500)
    unlimited.settle(10)
    assert dict(account.headers())[b"x-ratelimit-remaining-tokens"] == b"100"
    account.limit(entry(tokens_per_minute=1200))
    limited.settle(200)
    assert dict(account.headers())[b"x-ratelimit-remaining-tokens"] == b"1000"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0004, "1ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"),
                          (362.25, "6m2.25s"), (3599, "59m59s"), (3600, "1h0m0s"), (7601, "2h6m41s"),
                          (90_061.5, "25h1m1.5s")]
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(30)
    clock.now -= 1000
    assert bucket.level == 30
    clock.now += 10
    assert bucket.level == pytest.approx(40)


class AccountMachine(RuleBasedStateMachine):
    """Against books that remember every taking with its time."""

    reservations = Bundle("reservations")
    holds = Bundle("holds")

    @initialize(requests=st.integers(0, 10), tokens=st.integers(0, 200), answers=st.integers(0, 5))
    def begin(self, requests: int, tokens: int, answers: int) -> None:
        self.clock = Clock()
        self.limits = {"requests_per_minute": requests, "tokens_per_minute": tokens, "concurrent_answers": answers}
        self.account = Account(entry(**self.limits), self.clock)
        self.taken: list[float] = []
        self.used: list[list[float]] = []
        """[time, tokens], which settling changes."""
        self.held = 0

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def ask(self) -> None:
        try:
            self.account.take_request()
        except ApiError as error:
            self.check_wait(error)
        else:
            self.taken.append(self.clock.now)

    def check_wait(self, error: ApiError) -> None:
        """Who waits as long as told is let in, if nobody else comes meanwhile and no answer is in the way."""
        seconds = error.headers.get("Retry-After")
        if seconds is None:
            return
        assert int(seconds) >= 1
        if self.held >= self.limits["concurrent_answers"]:
            return
        self.clock.now += int(seconds)
        for _ in range(2):  # tokens first, then requests
            try:
                self.account.take_request()
            except ApiError as again:
                self.clock.now += int(again.headers["Retry-After"])
            else:
                self.taken.append(self.clock.now)
                return
        self.account.take_request()
        self.taken.append(self.clock.now)

    @rule(target=reservations, tokens=st.integers(1, 250))
    def reserve(self, tokens: int) -> object:
        try:
            found = self.account.reserve(tokens, tokens)
        except ApiError:
            return multiple()
        self.used.append([self.clock.now, tokens])
        return found, self.used[-1]

    @rule(reservation=reservations, used=st.integers(0, 400))
    def settle(self, reservation: tuple[Reservation, list[float]], used: int) -> None:
        found, book = reservation
        found.settle(used)
        book[1] = used

    @rule(target=holds, answers=st.integers(1, 6))
    def hold(self, answers: int) -> object:
        fits = self.held + answers <= self.limits["concurrent_answers"]
        try:
            found = self.account.hold(answers)
        except ApiError:
            assert not fits
            return multiple()
        assert fits
        self.held += answers
        return found, answers, [True]

    @rule(held=holds)
    def release(self, held: tuple[Hold, int, list[bool]]) -> None:
        found, answers, is_held = held
        found.release()
        self.held -= answers * is_held[0]
        is_held[0] = False

    @invariant()
    def no_minute_has_more_than_the_bucket_and_what_it_fills_by(self) -> None:
        if not hasattr(self, "clock"):
            return
        most = self.limits["requests_per_minute"]
        for begin in self.taken:
            within = sum(begin <= at <= begin + MINUTE for at in self.taken)
            assert within <= 2 * most + 1e-6
        assert self.account.answers == self.held
        headers = dict(self.account.headers())
        for unit, name in ((b"requests", "requests_per_minute"), (b"tokens", "tokens_per_minute")):
            assert 0 <= int(headers[b"x-ratelimit-remaining-" + unit]) <= self.limits[name]
            assert int(headers[b"x-ratelimit-limit-" + unit]) == self.limits[name]


AccountMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAccount = AccountMachine.TestCase


def test_the_level_is_exact_over_long_times() -> None:
    clock = Clock()
    bucket = Bucket(7, clock)
    for _ in range(10_000):
        bucket.take(1)
        wait = bucket.seconds_until(1)
        assert math.isfinite(wait)
        clock.now += wait
    assert bucket.level == pytest.approx(1 if wait else bucket.level)
