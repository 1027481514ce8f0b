"""A stand-in for `docker` on a machine with the double: containers are processes of this machine.

`docker run IMAGE build|serve ...` becomes `python -m deepinfer ...`, with the folders and the port
that the container was given. FAKE_DOCKER says as JSON how the machine is:

    environment   variables of every container
    calls         a file that each call is written to
    has_image     whether `docker image inspect` finds the image
    fail          by the first word of a container's command, what it writes before it exits with 1
    hang          first words of commands that never end
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

FLAGS_WITH_VALUE = (
    *("--gpus", "--ulimit", "--user", "--env", "--volume", "--publish", "--name", "--network"),
    *("--entrypoint", "--stop-timeout"),
)
PACKAGES = "deepinfer==0.1.0\ntensorrt==10.14.1.48\ntensorrt_llm==1.2.1\ntorch==2.9.1\n"
FINDINGS = "ok       TensorRT-LLM  1.2.1, TensorRT 10.14.1.48\nengines can be served on this GPU\n"
DIFFERENCES = "LLM.__init__: parameter `backend` is missing\n"


def main(arguments: list[str], settings: dict[str, Any]) -> int:
    with Path(settings["calls"]).open("a", encoding="utf-8") as calls:
        calls.write(json.dumps(arguments) + "\n")
    match arguments:
        case ["image", "inspect", *rest]:
            print("sha256:0123 62000000000 bytes" if "--format" in rest else "[]")
            return 0 if settings["has_image"] else 1
        case ["build", *_]:
            print("ERROR: failed to solve: no space left on device", file=sys.stderr)
            return 1
        case ["run", *rest]:
            return run(rest, settings)
        case ["--version"]:
            print("Docker version 29.2.1, build fake")
    return 0


def run(arguments: list[str], settings: dict[str, Any]) -> int:
    values: dict[str, list[str]] = {}
    while arguments[0].startswith("--"):
        flag = arguments.pop(0)
        if flag in FLAGS_WITH_VALUE:
            values.setdefault(flag, []).append(arguments.pop(0))
    _, *command = arguments
    words = [word for word in command if not word.startswith("--")]
    word = values.get("--entrypoint", words)[0]
    if word in settings["fail"]:
        print(settings["fail"][word])
        return 1
    if word in settings["hang"]:
        signal.pause()
    match word:
        case "grep":
            print(PACKAGES, end="")
        case "doctor":
            print(FINDINGS, end="")
        case "python":
            print(DIFFERENCES, end="")
            return 1
        case _:
            start(command, values, settings)
    return 0


def start(command: list[str], values: dict[str, list[str]], settings: dict[str, Any]) -> NoReturn:
    for volume in values.get("--volume", []):
        outside, inside, *_ = volume.split(":")
        command = [outside if word == inside else word for word in command]
    for address in values.get("--publish", []):
        host, port, _ = address.split(":")
        command[command.index("--host") + 1] = host
        command += ["--port", port]
    environment = {**os.environ, **settings["environment"]}
    os.execve(sys.executable, [sys.executable, "-m", "deepinfer", *command], environment)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], json.loads(os.environ["FAKE_DOCKER"])))
