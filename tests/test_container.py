"""The container: what its files promise, and its scripts, run with a made-up `docker`.

No image is built here: Docker and a base image of 60 GB are not everybody's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deepinfer.config_layers import load_config
from deepinfer.trtllm_release import CHECKED_VERSION, CONTAINER
from tools import check_image_resolve

ROOT = Path(__file__).parent.parent
NGC = ROOT / "build" / "ngc"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TOKEN = "hf_a-secret-of-somebody"


def stage(name: str) -> str:
    """The instructions of one target of the Dockerfile."""
    (body,) = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    return body


def test_targets_are_made_from_the_release_that_is_checked() -> None:
    targets = dict(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M))
    assert targets[CONTAINER] == "tensorrt-llm"
    assert list(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.M))[-1] == "cpu"


@pytest.mark.parametrize("name", ["cpu", "tensorrt-llm"])
def test_image_runs_as_nobody_special_and_says_how_it_is(name: str) -> None:
    body = stage(name)
    assert "USER 10001:10001" in body
    assert "HEALTHCHECK" in body and "/health" in body
    assert re.search(r"^VOLUME .*/srv/engines", body, re.M)


def test_gpu_image_keeps_the_model_cache_in_a_volume() -> None:
    body = stage("tensorrt-llm")
    assert re.search(r"^VOLUME .*/srv/cache", body, re.M)
    assert "HF_HOME=/srv/cache/huggingface" in body


def test_gpu_image_installs_under_its_own_versions_as_constraints() -> None:
    body = stage("tensorrt-llm")
    assert re.findall(r"pip install.*?\.whl", body, re.S) == re.findall(
        r"pip install[^&]*?--constraint /opt/deepinfer/image\.txt[^&]*?\.whl", body
    )
    assert "comm -23 /opt/deepinfer/image.txt /opt/deepinfer/all.txt" in body


def constraints() -> dict[str, SpecifierSet]:
    lines = check_image_resolve.CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement.specifier for requirement in parsed}


CORE = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}
SHARED = sorted(CORE.keys() & constraints().keys())


def test_core_shares_libraries_with_the_image() -> None:
    assert {"fastapi", "nvidia-ml-py", "pydantic", "tokenizers"} <= set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_core_admits_what_the_image_ships(name: str) -> None:
    """Every version that the image's range names and admits is admitted by ours."""
    image = constraints()[name]
    named = {one.version for one in image if image.contains(one.version)}
    assert named
    assert {version for version in named if not CORE[name].specifier.contains(version)} == set()


def test_core_admits_the_python_of_the_image() -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains(check_image_resolve.IMAGE_PYTHON)
    text = check_image_resolve.CONSTRAINTS.read_text(encoding="utf-8")
    assert f"# python {check_image_resolve.IMAGE_PYTHON}\n" in text


def test_image_ships_the_release_that_is_checked() -> None:
    (extra,) = map(Requirement, PROJECT["optional-dependencies"]["tensorrt-llm"])
    assert str(extra.specifier) == f"=={CHECKED_VERSION}"
    assert CONTAINER in check_image_resolve.CONSTRAINTS.read_text(encoding="utf-8")


def test_dry_run_asks_for_the_whole_core_and_downloads_no_torch() -> None:
    command = check_image_resolve.make_command("/nowhere")
    assert {"--dry-run", "--ignore-installed"} <= set(command)
    assert set(PROJECT["dependencies"]) <= set(command)
    assert "torch" not in command


class Host:
    """A folder of made-up programs; what `docker run` was asked for is kept in a file."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.home = folder / "home"
        self.home.mkdir()
        self.engines = folder / "engines"
        self.engines.mkdir()
        self.calls = folder / "calls"
        self.has_image(True)
        self.has_driver("580.126.20")

    def has_driver(self, *versions: str) -> None:
        lines = "\n".join(versions)
        self._write("nvidia-smi", f"printf '%s\\n' '{lines}'" if versions else "exit 9")

    def has_image(self, is_there: bool) -> None:
        self._write("docker", f'[ "$1" = image ] && exit {0 if is_there else 1}\n{self._recorder}')

    def cannot_build_an_image(self) -> None:
        self._write("docker", "exit 1")

    @property
    def _recorder(self) -> str:
        return f"printf '%s\\n' \"$@\" >> '{self.calls}'"

    def _write(self, name: str, body: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(
        self, script: str, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "ENGINES_DIR": str(self.engines),
            "RUN_AS": "1000:1000",
            **variables,
        }
        return subprocess.run(
            [str(NGC / script), *arguments], env=environ, capture_output=True, text=True
        )

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def values(asked: list[str], flag: str) -> list[str]:
    return [after for before, after in zip(asked, asked[1:], strict=False) if before == flag]


@pytest.mark.parametrize("script", ["build.sh", "serve.sh"])
def test_container_gets_what_gpu_libraries_need(host: Host, script: str) -> None:
    done = host.run(script, GPUS="1")
    assert (done.returncode, done.stderr) == (0, "")
    asked = host.asked()
    assert asked[0] == "run"
    assert values(asked, "--gpus") == ["1"]
    assert "--ipc=host" in asked
    assert values(asked, "--ulimit") == ["memlock=-1", "stack=67108864"]
    assert values(asked, "--user") == ["1000:1000"]


@pytest.mark.parametrize("script", ["build.sh", "serve.sh"])
def test_container_has_a_name_for_torch_and_one_for_docker_where_it_is_wanted(
    host: Host, script: str
) -> None:
    assert host.run(script, CONTAINER_NAME="mine").returncode == 0
    assert values(host.asked(), "--name") == ["mine"]
    assert "USER=deepinfer" in values(host.asked(), "--env")


@pytest.mark.parametrize("script", ["build.sh", "serve.sh"])
def test_arguments_are_handed_on(host: Host, script: str) -> None:
    assert host.run(script, "--model", "a model with spaces").returncode == 0
    assert host.asked()[-2:] == ["--model", "a model with spaces"]


DRIVERS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "new enough": (("580.65.06",), None),
    "newer": (("590.44.01", "590.44.01"), None),
    "for CUDA 12 only": (("575.57.08",), "NVIDIA driver 575.57.08 is too old"),
    "absent": ((), "no NVIDIA driver answers"),
    "confused": (("No devices were found",), "no NVIDIA driver answers"),
}


@pytest.mark.parametrize("script", ["build.sh", "serve.sh"])
@pytest.mark.parametrize(("versions", "message"), DRIVERS.values(), ids=DRIVERS.keys())
def test_driver(host: Host, script: str, versions: tuple[str, ...], message: str | None) -> None:
    host.has_driver(*versions)
    done = host.run(script)
    assert host.calls.exists() == (message is None)
    if message:
        error, hint = done.stderr.splitlines()
        assert error.startswith(f"error: {message}")
        assert hint.startswith("hint: install driver 580 or later")
        assert done.returncode == 1


@pytest.mark.parametrize("user", ["0:0", "root:root"])
def test_root_is_refused(host: Host, user: str) -> None:
    done = host.run("serve.sh", RUN_AS=user)
    assert done.stderr.startswith("error: the container does not run as root\nhint: ")
    assert not host.calls.exists()


def test_image_that_is_absent_is_made_first(host: Host) -> None:
    host.has_image(False)
    assert host.run("serve.sh").returncode == 0
    asked = host.asked()
    assert asked[:5] == ["build", "--target", "tensorrt-llm", "--tag", "deepinfer:tensorrt-llm"]
    assert "run" in asked


def test_image_that_cannot_be_made_is_one_line(host: Host) -> None:
    host.cannot_build_an_image()
    done = host.run("build.sh")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the image deepinfer:tensorrt-llm cannot be made\nhint: ")


def test_token_is_handed_on_by_name_and_never_shown(host: Host) -> None:
    done = host.run("build.sh", HF_TOKEN=TOKEN)
    assert "HF_TOKEN" in values(host.asked(), "--env")
    assert TOKEN not in done.stdout + done.stderr + host.calls.read_text()


def test_serving_gets_no_token(host: Host) -> None:
    host.run("serve.sh", HF_TOKEN=TOKEN)
    assert "HF_TOKEN" not in values(host.asked(), "--env")


def test_build_mounts_engines_cache_and_what_it_may_read(host: Host, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    host.run("build.sh", READ_DIR=str(models))
    cache = host.home / ".cache"
    assert values(host.asked(), "--volume") == [
        f"{host.engines}:/srv/engines",
        f"{cache}/huggingface:/srv/cache/huggingface",
        f"{cache}/deepinfer:/srv/cache/deepinfer",
        f"{ROOT}/build/recipes:/srv/build/recipes:ro",
        f"{models}:{models}:ro",
    ]
    assert (cache / "huggingface").is_dir()


def test_serving_reads_engines_and_listens_on_this_machine_only(host: Host) -> None:
    host.run("serve.sh")
    asked = host.asked()
    assert values(asked, "--volume") == [f"{host.engines}:/srv/engines:ro"]
    assert values(asked, "--publish") == ["127.0.0.1:8000:8000"]


def test_key_file_is_mounted_and_named(host: Host, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    host.run("serve.sh", KEY_FILE=str(keys), PUBLISH="0.0.0.0:80")
    asked = host.asked()
    assert f"{keys}:/run/secrets/keys:ro" in values(asked, "--volume")
    assert values(asked, "--api-key-file") == ["/run/secrets/keys"]
    assert values(asked, "--publish") == ["0.0.0.0:80:8000"]


MISTAKES: dict[str, tuple[dict[str, str], str]] = {
    "key file": ({"KEY_FILE": "/nowhere/keys"}, "the key file /nowhere/keys cannot be read"),
    "engines": ({"ENGINES_DIR": "/nowhere"}, "no folder of engines at /nowhere"),
}


@pytest.mark.parametrize(("variables", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_missing(host: Host, variables: dict[str, str], message: str) -> None:
    done = host.run("serve.sh", **variables)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}\nhint: ")
    assert not host.calls.exists()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((NGC / "compose.yaml").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("service", ["build", "serve"])
def test_compose_gives_the_same_as_the_scripts(compose: dict[str, Any], service: str) -> None:
    settings = compose["services"][service]
    (device,) = settings["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert settings["ipc"] == "host"
    assert settings["ulimits"] == {"memlock": -1, "stack": 67108864}
    assert settings["build"]["target"] == "tensorrt-llm"
    assert ("HF_TOKEN" in settings["environment"]) == (service == "build")


def test_compose_serves_with_the_configuration_of_the_5090(compose: dict[str, Any]) -> None:
    serve = compose["services"]["serve"]
    config = load_config(ROOT / "configs" / "rtx5090.yaml", {}, []).config
    assert serve["secrets"] == [{"source": "keys", "target": str(config.server.api_key_file)}]
    mounted = [volume.split(":")[1] for volume in serve["volumes"]]
    assert {serve["command"][serve["command"].index("--config") + 1], "/srv/engines"} == set(
        mounted
    )
    sources = [NGC / volume.split(":")[0] for volume in serve["volumes"]]
    assert all(source.exists() for source in sources)
    grace_s = int(serve["stop_grace_period"].removesuffix("s"))
    assert grace_s > config.server.shutdown_timeout_s


def test_token_in_compose_has_no_value(compose: dict[str, Any]) -> None:
    assert compose["services"]["build"]["environment"]["HF_TOKEN"] is None


@pytest.mark.parametrize("script", ["build.sh", "serve.sh", "first_run.sh"])
def test_script_can_be_run(script: str) -> None:
    assert os.access(NGC / script, os.X_OK)
    assert "set -euo pipefail\n" in (NGC / script).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("linter", "text"),
    [("shellcheck", "#!/bin/sh\nrm -rf $FOLDER\n"), ("hadolint", "FROM debian\nRUN cd /tmp\n")],
    ids=["shellcheck", "hadolint"],
)
def test_linter_of_make_check_finds_a_mistake(tmp_path: Path, linter: str, text: str) -> None:
    assert f"$(BIN)/{linter} " in (ROOT / "Makefile").read_text(encoding="utf-8")
    program = Path(sys.executable).parent / linter
    if not program.exists():
        pytest.skip(f"{linter} comes with the extra `dev`")
    file = tmp_path / "Dockerfile"
    file.write_text(text)
    assert subprocess.run([str(program), str(file)], capture_output=True).returncode == 1


PAGE = (ROOT / "docs" / "gpu-validation.md").read_text(encoding="utf-8")
PAGE_COMMANDS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)


def test_commands_of_the_first_run_s_page_are_bash() -> None:
    assert len(PAGE_COMMANDS) > 8
    for text in PAGE_COMMANDS:
        text = text.replace("<this repository>", "repository")
        done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), text


def test_page_of_the_first_run_uses_no_port_twice_and_waits_for_nothing_for_ever() -> None:
    ports = re.findall(r"PUBLISH=\S+:(\d+)", PAGE)
    assert len(ports) == len(set(ports)) >= 3
    for text in PAGE_COMMANDS:
        for line in text.splitlines():
            if re.search(r"\b(until|while)\b", line):
                assert line.startswith("timeout "), line


def test_containers_of_the_page_have_a_user_with_a_home_and_a_name() -> None:
    commands = "\n".join(PAGE_COMMANDS).replace("\\\n", " ").splitlines()
    containers = [line for line in commands if "docker run" in line and "--user" in line]
    assert len(containers) >= 3
    for line in containers:
        assert "--env HOME=/tmp" in line and "--env USER=" in line


def test_page_begins_with_models_that_need_no_token() -> None:
    by_hand = "\n".join(PAGE_COMMANDS).split("build/ngc/build.sh", maxsplit=1)[1]
    models = dict.fromkeys(re.findall(r"--model (\S+/\S+)", by_hand))
    assert [*models] == ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"]
