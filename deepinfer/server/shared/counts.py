"""The counts of limits where several processes let requests in.

A minute's counts are the server's, running requests are those of one process and end with it. Names
are those of keys, so there are never many.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from deepinfer.server.limits import Clock, Counts
from deepinfer.server.shared.ledger import Ledger

INCREMENT = """
INSERT INTO windows VALUES (:name, :now + :expiry, max(:amount, 0))
ON CONFLICT (name) DO UPDATE SET
    count = iif(ends_at > :now, max(count + :amount, 0), max(:amount, 0)),
    ends_at = iif(ends_at > :now, ends_at, :now + :expiry)
RETURNING count
"""
ADD_RUNNING = """
INSERT INTO running VALUES (?, ?, ?)
ON CONFLICT (key_name, worker) DO UPDATE SET count = count + excluded.count
"""


class SharedCounts(Counts):
    """As one worker counts. The monotonic clock is the same for all processes of a machine."""

    STORAGE_SCHEME = None

    def __init__(self, ledger: Ledger, worker: int, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._ledger = ledger
        self._worker = worker
        self._clock = clock

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def atomic(self) -> AbstractContextManager[None]:
        return self._ledger.transaction()

    def running(self, key_name: str) -> int:
        statement = "SELECT coalesce(sum(count), 0) FROM running WHERE key_name = ?"
        return int(self._ledger.run(statement, (key_name,))[0][0])

    def add_running(self, key_name: str, amount: int) -> None:
        self._ledger.run(ADD_RUNNING, (key_name, self._worker, amount))

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        parameters = {"name": key, "now": self._clock(), "expiry": expiry, "amount": amount}
        return int(self._ledger.run(INCREMENT, parameters)[0][0])

    def get(self, key: str) -> int:
        return self._find(key)[1]

    def get_expiry(self, key: str) -> float:
        """In Unix seconds, as the library has it."""
        return time.time() + self._find(key)[0]

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        return len(self._ledger.run("DELETE FROM windows RETURNING name"))

    def clear(self, key: str) -> None:
        self._ledger.run("DELETE FROM windows WHERE name = ?", (key,))

    def _find(self, key: str) -> tuple[float, int]:
        """How many seconds a window still has, and its count."""
        now = self._clock()
        statement = "SELECT ends_at - ?, count FROM windows WHERE name = ? AND ends_at > ?"
        rows = self._ledger.run(statement, (now, key, now))
        return (float(rows[0][0]), int(rows[0][1])) if rows else (0.0, 0)


def drop_running(ledger: Ledger, worker: int) -> None:
    """The requests of a process that has died run no more."""
    ledger.run("DELETE FROM running WHERE worker = ?", (worker,))
