"""How much a key may ask for: requests and tokens a minute, and requests at a time.

A minute begins with the first request after the last minute has ended. Tokens are reserved for the
longest answer that was asked for, which keeps any number of requests that start together to what
is allowed, and given back when the answer was shorter. Nothing here knows routes or keys.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from deepinfer.config import LimitsSection
from deepinfer.errors import AboveRateLimit, RateLimitExceeded

Clock = Callable[[], float]

MINUTE_S = 60
BUSY_RETRY_S = 1  # when one of a key's running requests ends is not known


@dataclass
class _Window:
    ends_at: float
    count: int = 0


class MonotonicStorage(Storage):
    """Counts by the monotonic clock: the library's own keeps threads, and minutes of a calendar
    that may be set back."""

    STORAGE_SCHEME = None

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._running: Counter[str] = Counter()

    def running(self, key_name: str) -> int:
        """Requests of a key that have entered and not left."""
        return self._running[key_name]

    def add_running(self, key_name: str, amount: int) -> None:
        self._running[key_name] += amount
        if not self._running[key_name]:
            del self._running[key_name]

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        window = self._find(key)
        if window is None:
            now = self._clock()
            self._windows = {k: w for k, w in self._windows.items() if w.ends_at > now}
            window = self._windows[key] = _Window(now + expiry)
        window.count = max(window.count + amount, 0)
        return window.count

    def get(self, key: str) -> int:
        window = self._find(key)
        return 0 if window is None else window.count

    def get_expiry(self, key: str) -> float:
        """In Unix seconds, as the library has it."""
        window = self._find(key)
        return time.time() + (0 if window is None else window.ends_at - self._clock())

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        num_windows = len(self._windows)
        self._windows.clear()
        return num_windows

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _find(self, key: str) -> _Window | None:
        window = self._windows.get(key)
        return window if window is not None and window.ends_at > self._clock() else None


class _Quota:
    """One limit of one key by the minute."""

    def __init__(self, storage: Storage, unit: str, amount: int, key_name: str) -> None:
        self.amount = amount
        self._unit = unit
        self._key_name = key_name
        self._item = RateLimitItemPerMinute(amount)
        self._limiter = FixedWindowRateLimiter(storage)

    @property
    def remaining(self) -> int:
        return self._limiter.get_window_stats(self._item, self._unit, self._key_name).remaining

    @property
    def reset_s(self) -> float:
        """Until the minute ends; 0 when none is under way."""
        stats = self._limiter.get_window_stats(self._item, self._unit, self._key_name)
        return min(max(stats.reset_time - time.time(), 0), MINUTE_S)

    def charge(self, amount: int) -> None:
        self._limiter.hit(self._item, self._unit, self._key_name, cost=amount)


class Allowance:
    """What one request takes of its key's limits: `enter`, perhaps `reserve`, `settle`, `leave`."""

    def __init__(
        self,
        key_name: str,
        counts: MonotonicStorage,
        max_running: int | None,
        requests: _Quota | None,
        tokens: _Quota | None,
        clock: Clock,
    ) -> None:
        self._key_name = key_name
        self._counts = counts
        self._max_running = max_running
        self._requests = requests
        self._tokens = tokens
        self._clock = clock
        self._reserved = 0
        self._reserved_until = 0.0

    def enter(self) -> None:
        """Count a request. Raises RateLimitExceeded, and then nothing is counted."""
        running, max_running = self._counts.running, self._max_running
        if max_running is not None and running(self._key_name) >= max_running:
            raise RateLimitExceeded(
                f"At most {_count(max_running, 'request')} may run at a time; send it again "
                "when one has ended",
                retry_after_s=BUSY_RETRY_S,
            )
        if self._requests is not None:
            if not self._requests.remaining:
                raise _exceeded("request", self._requests)
            self._requests.charge(1)
        self._counts.add_running(self._key_name, 1)

    def leave(self) -> None:
        """After `enter`, when the response has ended."""
        self._counts.add_running(self._key_name, -1)

    def reserve(self, prompt_tokens: int, max_tokens: int) -> None:
        """Hold what the request may come to. Raises RateLimitExceeded, and then nothing is held."""
        if (quota := self._tokens) is None:
            return
        if prompt_tokens > quota.amount:
            raise AboveRateLimit(
                f"The prompt has {_count(prompt_tokens, 'token')}; at most "
                f"{_count(quota.amount, 'token')} a minute are allowed"
            )
        # An answer that could take more than a minute's tokens still has its turn.
        wanted = min(prompt_tokens + max_tokens, quota.amount)
        remaining = quota.remaining
        if wanted > remaining:
            detail = f"; {remaining:,} are left, and prompt and `max_tokens` come to {wanted:,}"
            raise _exceeded("token", quota, detail)
        quota.charge(wanted)
        self._reserved = wanted
        self._reserved_until = self._clock() + quota.reset_s

    def settle(self, used_tokens: int) -> None:
        """Replace what was held by what has been used."""
        if self._tokens is None:
            return
        difference = used_tokens - self._reserved
        self._reserved = 0
        # What was held in a minute that is over is gone with it.
        if difference > 0 or self._clock() < self._reserved_until:
            self._tokens.charge(difference)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's, for each limit that is set."""
        quotas = {"requests": self._requests, "tokens": self._tokens}
        return [
            (f"x-ratelimit-{what}-{unit}".encode(), value.encode())
            for unit, quota in quotas.items()
            if quota is not None
            for what, value in (
                ("limit", str(quota.amount)),
                ("remaining", str(quota.remaining)),
                ("reset", _as_duration(quota.reset_s)),
            )
        ]


class RateLimiter:
    """The counts of all keys, by their names."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._counts = MonotonicStorage(clock)
        self._clock = clock

    def allowance(self, key_name: str, limits: LimitsSection) -> Allowance:
        """For one request of the key called `key_name`; "" is the server as a whole."""

        def quota(unit: str, amount: int | None) -> _Quota | None:
            return None if amount is None else _Quota(self._counts, unit, amount, key_name)

        return Allowance(
            key_name,
            self._counts,
            limits.concurrent_requests,
            quota("requests", limits.requests_per_minute),
            quota("tokens", limits.tokens_per_minute),
            self._clock,
        )


def _exceeded(unit: str, quota: _Quota, detail: str = "") -> RateLimitExceeded:
    seconds = max(math.ceil(quota.reset_s), 1)
    return RateLimitExceeded(
        f"At most {_count(quota.amount, unit)} a minute{detail}; the next minute begins in "
        f"{seconds} s",
        retry_after_s=seconds,
    )


def _count(amount: int, unit: str) -> str:
    return f"{amount:,} {unit}" if amount == 1 else f"{amount:,} {unit}s"


def _as_duration(seconds: float) -> str:
    """Whole seconds as OpenAI writes them: "17s", "1m0s"."""
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < MINUTE_S else f"{whole // MINUTE_S}m{whole % MINUTE_S}s"
