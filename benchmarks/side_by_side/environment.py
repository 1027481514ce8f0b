"""A virtual environment of a contender's own: made by pip on first use, kept for the next run.

Contenders pin what they need and may need what others must not have, so each has its own. What is
installed is written down last: an installation that was cut short is made again.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side_by_side.contender import Unavailable

INSTALL_TIMEOUT_S = 3600.0  # llama.cpp is compiled
MAX_REASON_CHARS = 160
MARKER = "installed.txt"


@dataclass(frozen=True)
class Environment:
    folder: Path
    requirements: tuple[str, ...]
    pip_args: str = ""
    unwanted: tuple[str, ...] = ()  # what comes along and does not load beside a torch for CPUs

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def _wanted(self) -> str:
        return "\n".join([*self.requirements, *(f"without {name}" for name in self.unwanted)])

    def install(self) -> None:
        """Raises Unavailable with pip's own reason."""
        marker = self.folder / MARKER
        if marker.exists() and marker.read_text() == self._wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self._run([sys.executable, "-m", "venv", str(self.folder)])
        pip = [str(self.python), "-m", "pip"]
        self._run([*pip, "install", *shlex.split(self.pip_args), *self.requirements])
        if self.unwanted:
            self._run([*pip, "uninstall", "--yes", *self.unwanted])
        marker.write_text(self._wanted)

    def version(self, package: str) -> str:
        code = f"from importlib.metadata import version; print(version({package!r}))"
        command = [str(self.python), "-c", code]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def _run(self, command: list[str]) -> None:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"not installed after {INSTALL_TIMEOUT_S / 60:.0f} minutes") from None
        if done.returncode != 0:
            raise Unavailable(f"not installed: {find_reason(done.stderr + done.stdout)}")


def find_reason(output: str) -> str:
    """The line that says what went wrong: pip's first error, else the last line there is."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    reason = (errors or lines[-1:] or ["it said nothing"])[0]
    return reason[:MAX_REASON_CHARS]
