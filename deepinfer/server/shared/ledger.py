"""The database that the API processes of one server share, in a folder that only they can enter.

It outlives each of them and not the server. A process may be killed at any moment, in the middle of
a write too, so there is a log ahead of the database; nothing is ever forced to the disk, since
nothing is read after a crash of the machine. What stands in the tables is for others to say.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE_NAME = "shared.sqlite"
# A write takes some 20 us; whoever waits for so long waits for a process that hangs.
LOCK_TIMEOUT_S = 5.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS windows (
    name TEXT PRIMARY KEY, ends_at REAL NOT NULL, count INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS running (
    key_name TEXT, worker INTEGER, count INTEGER NOT NULL, PRIMARY KEY (key_name, worker)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS figures (worker INTEGER PRIMARY KEY, samples BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner BLOB NOT NULL, rendered BLOB NOT NULL, input BLOB NOT NULL,
    output BLOB NOT NULL, size_bytes INTEGER NOT NULL, used INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, size_bytes);
"""

Parameters = Sequence[object] | Mapping[str, object]


class Ledger:
    """One process's connection, for one thread."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(
            folder / FILE_NAME, timeout=LOCK_TIMEOUT_S, isolation_level=None
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(SCHEMA)

    def run(self, statement: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """Carry out one statement, by itself unless a transaction is open. Returns its rows."""
        return self._connection.execute(statement, parameters).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is run within happens at once for all others, or not at all."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.run("ROLLBACK")
            raise
        self.run("COMMIT")

    def close(self) -> None:
        self._connection.close()
