"""The pace at which an endpoint may be called: requests and tokens a minute."""

import time
from collections.abc import Callable


class RateLimiter:
    """Spaces calls evenly, so that no minute, wherever it starts, holds more than what is allowed.

    Args:
        requests_per_minute: None is no limit.
        tokens_per_minute: None is no limit.
        clock: seconds that only grow.

    >>> limiter = RateLimiter(requests_per_minute=30, clock=lambda: 100.0)
    >>> limiter.reserve(10), limiter.reserve(10), limiter.reserve(10)
    (0.0, 2.0, 4.0)
    """

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds_per_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._request_at = self._token_at = clock()

    def reserve(self, tokens: int) -> float:
        """Books one call of an estimated size; returns the seconds to wait before it is made."""
        now = self._clock()
        at = max(now, self._request_at, self._token_at)
        self._request_at = at + self._seconds_per_request
        self._token_at = at + tokens * self._seconds_per_token
        return at - now

    def settle(self, *, estimated: int, used: int) -> None:
        """Corrects a booking once it is known how many tokens the call took."""
        self._token_at += (used - estimated) * self._seconds_per_token
