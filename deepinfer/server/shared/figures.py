"""The figures of all API processes of a server, added up by whichever of them is asked.

Each puts its own here, now and then and whenever it says them to anybody, so that a counter that
has been read never falls: what a process has counted stays when it dies, what it had at that moment
goes. Which figures are a process's own and which are the engine's is said here; how they are called
and counted is not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from deepinfer.server.shared.ledger import Ledger

# Every process knows these of the engine, and alike.
ENGINES_OWN = frozenset({"deepinfer_engine_restarts"})
# Gauges of one process that add up to the server's; of others there is one engine's figure.
ADDED_GAUGES = frozenset(
    {
        "deepinfer_open_streams",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
    }
)
GONE = 0  # in place of a worker's number: all those that have died

Key = tuple[str, str, tuple[tuple[str, str], ...]]  # family, sample, labels


class Figure(msgspec.Struct, frozen=True, array_like=True):
    """One sample of a family that is added up."""

    family: str
    name: str
    labels: dict[str, str]
    value: float

    @property
    def key(self) -> Key:
        return self.family, self.name, tuple(sorted(self.labels.items()))


class FigureShelf:
    """As one worker sees it: where it puts its figures, and finds those of the others."""

    def __init__(self, ledger: Ledger, worker: int) -> None:
        self._ledger = ledger
        self._worker = worker

    def put(self, families: Iterable[Metric]) -> None:
        _write(self._ledger, self._worker, list(_take(families)))

    def add_others(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """The families of this process, each with what the others have of it."""
        others = _add_up(_read(self._ledger, "worker != ?", self._worker))
        for family in families:
            if _is_added(family):
                _add(family, [one for one in others if one.family == family.name])
            yield family


class SharedCollector(Collector):
    """What some collectors say, as it is in the whole server."""

    def __init__(self, own: Sequence[Collector], shelf: FigureShelf) -> None:
        self._own = own
        self._shelf = shelf

    def collect(self) -> Iterator[Metric]:
        families = self._collect_own()
        self._shelf.put(families)
        yield from self._shelf.add_others(families)

    def save(self) -> None:
        """Put the figures where others find them."""
        self._shelf.put(self._collect_own())

    def _collect_own(self) -> list[Metric]:
        return [family for collector in self._own for family in collector.collect()]


def bury(ledger: Ledger, worker: int) -> None:
    """Keep the counters of a worker that has died, and forget its gauges."""
    with ledger.transaction():
        figures = _read(ledger, "worker IN (?, ?)", GONE, worker)
        kept = [figure for figure in figures if figure.family not in ADDED_GAUGES]
        _write(ledger, GONE, _add_up(kept))
        ledger.run("DELETE FROM figures WHERE worker = ?", (worker,))


def _is_added(family: Metric) -> bool:
    if family.type == "gauge":
        return family.name in ADDED_GAUGES
    return family.name not in ENGINES_OWN


def _take(families: Iterable[Metric]) -> Iterator[Figure]:
    for family in families:
        if _is_added(family):
            for sample in family.samples:
                yield Figure(family.name, sample.name, sample.labels, sample.value)


def _add(family: Metric, others: Iterable[Figure]) -> None:
    own = [
        Figure(family.name, sample.name, sample.labels, sample.value) for sample in family.samples
    ]
    family.samples = [
        Sample(figure.name, figure.labels, figure.value) for figure in _add_up([*own, *others])
    ]


def _add_up(figures: Iterable[Figure]) -> list[Figure]:
    """One figure for all of one name with the same labels, in the order of their first ones."""
    sums: dict[Key, float] = defaultdict(float)
    for figure in figures:
        sums[figure.key] += figure.value
    return [
        Figure(family, name, dict(labels), value) for (family, name, labels), value in sums.items()
    ]


def _read(ledger: Ledger, condition: str, *workers: int) -> list[Figure]:
    rows = ledger.run(f"SELECT samples FROM figures WHERE {condition}", workers)
    read = [msgspec.msgpack.decode(samples, type=list[Figure]) for (samples,) in rows]
    return [figure for figures in read for figure in figures]


def _write(ledger: Ledger, worker: int, figures: Sequence[Figure]) -> None:
    samples = msgspec.msgpack.encode(figures)
    ledger.run("INSERT OR REPLACE INTO figures VALUES (?, ?)", (worker, samples))
