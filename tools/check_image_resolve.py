"""Ask pip whether the core installs beside what the TensorRT-LLM image ships; installs nothing.

    python tools/check_image_resolve.py

It needs a package index, so it is no test and no part of `make check`: run it after a change of
the dependencies. The image's versions stand in build/ngc/constraints.txt. The last word has the
build of the image itself, which reads them there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "build" / "ngc" / "constraints.txt"
IMAGE_PYTHON = "3.12"
# Resolved with the core, for what they require of libraries that both need. torch is left out: its
# wheels are gigabytes, and pip would download them to read what they require.
COMPANIONS = ("transformers",)


def core_requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies: list[str] = project["dependencies"]
    return dependencies


def make_command(target: str) -> list[str]:
    """A dry run of pip for the image's Python; `target` is a folder that stays empty."""
    options = ["--dry-run", "--quiet", "--ignore-installed", "--only-binary=:all:"]
    options += ["--python-version", IMAGE_PYTHON, "--target", target]
    options += ["--constraint", str(CONSTRAINTS)]
    return [
        sys.executable,
        *["-m", "pip", "--disable-pip-version-check", "install"],
        *options,
        *core_requirements(),
        *COMPANIONS,
    ]


def main() -> int:
    with tempfile.TemporaryDirectory() as target:
        exit_code = subprocess.run(make_command(target), check=False).returncode
    if exit_code:
        print("error: the core does not install beside the image's versions", file=sys.stderr)
        print(
            f"hint: widen a range in pyproject.toml; they stand in {CONSTRAINTS}", file=sys.stderr
        )
        return 1
    print(f"the core installs beside the versions in {CONSTRAINTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
