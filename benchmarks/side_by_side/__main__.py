"""The command behind `make bench`: `python -m benchmarks.side_by_side --output FOLDER`.

Measures part after part, and writes the page and the figures into the folder. Wants the machine for
itself: whatever else runs meanwhile is in the figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.side_by_side import report
from benchmarks.side_by_side.plan import PEERS, STEPS, Setup, prepare, run_steps
from deepinfer.bench.machine import measure_machine

KEPT = Path(__file__).parents[2] / ".bench"
NAMES = tuple(step.name for step in STEPS)


def main() -> int:
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        folder=KEPT,
        peers=tuple(arguments.peers),
        pip_args=arguments.pip_args,
        is_quick=arguments.quick,
        say=say,
    )
    prepare(setup)
    started_at = time.monotonic()
    say("measuring this machine")
    found = report.begin(measure_machine(os.cpu_count() or 1), is_quick=arguments.quick)

    def add(part: report.Part) -> None:
        found.parts.append(part)
        found.elapsed_s = time.monotonic() - started_at
        report.write(found, arguments.output)

    run_steps([step for step in STEPS if step.name in arguments.parts], setup, add)
    print(arguments.output / report.PAGE)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the page")
    parser.add_argument("--parts", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--quick", action="store_true", help="all of it, with figures of no worth")
    parser.add_argument("--pip-args", default="", help="for the environments of the peers")
    return parser.parse_args()


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
