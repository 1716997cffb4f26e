"""The pace of calls, on a clock that the test turns."""

import random

import pytest

from rlsys.data.judge_limits import RateLimiter


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_no_limit_never_waits():
    limiter = RateLimiter(clock=_Clock())
    assert [limiter.reserve(10**9) for _ in range(5)] == [0.0] * 5


def test_tokens_of_one_call_delay_the_next():
    clock = _Clock()
    limiter = RateLimiter(tokens_per_minute=600, clock=clock)
    assert limiter.reserve(100) == 0.0
    assert limiter.reserve(50) == pytest.approx(10.0)
    clock.now += 15.0
    assert limiter.reserve(50) == 0.0


def test_a_booking_is_corrected_by_what_was_used():
    limiter = RateLimiter(tokens_per_minute=600, clock=_Clock())
    limiter.reserve(1000)
    limiter.settle(estimated=1000, used=20)
    assert limiter.reserve(1) == pytest.approx(2.0)


@pytest.mark.parametrize(("requests", "tokens"), [(30, None), (None, 5000), (40, 3000)])
def test_no_minute_holds_more_than_is_allowed(requests, tokens):
    clock, rng = _Clock(), random.Random(0)
    limiter = RateLimiter(requests_per_minute=requests, tokens_per_minute=tokens, clock=clock)
    made: list[tuple[float, int]] = []
    for _ in range(400):
        clock.now += rng.choice((0.0, 0.0, 0.0, 0.5, 20.0))
        size = rng.randint(1, 400)
        made.append((clock.now + limiter.reserve(size), size))
    for start, _ in made:
        minute = [size for at, size in made if start <= at < start + 60 - 1e-6]
        if requests:
            assert len(minute) <= requests
        if tokens:
            assert sum(minute[:-1]) <= tokens  # the last one's tokens belong to the time after it
    assert [at for at, _ in made] == sorted(at for at, _ in made)
