"""The Dockerfile's own steps, run in a temporary root as far as they go without NVIDIA's image.

The shell text is read from the Dockerfile. Paths are moved below the temporary root, `ldconfig`
works on it (`-r`), and where the text starts a Python of the image, one of ours plays it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from deepinfer.process import run_probe

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPILER = shutil.which("cc") or shutil.which("gcc")
LDCONFIG = shutil.which("ldconfig", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
LIBRARY_FOLDERS = {
    "libnvinfer.so.10": "usr/local/tensorrt/lib",
    "libnvinfer_plugin.so.10": "usr/local/tensorrt/lib",
    "libnvonnxparser.so.10": "usr/local/tensorrt/lib",
    "libcudart.so.13": "usr/local/cuda/lib64",
    "libmpi.so.40": "opt/hpcx/ompi/lib",
}
# Which the image's own folder of configuration names, as this one does.
MPI_CONFIGURATION = "etc/ld.so.conf.d/hpcx.conf"


def read_stage(name: str) -> list[tuple[str, str]]:
    """The instructions of one target, each on one line, as Docker reads them."""
    (body,) = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    lines = [line for line in body.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [
        (keyword, rest)
        for keyword, rest in (line.split(maxsplit=1) for line in joined.splitlines() if line)
    ]


STAGE = read_stage("tensorrt-llm")
(SHELL,) = (json.loads(rest) for keyword, rest in STAGE if keyword == "SHELL")


def step_with(text: str) -> str:
    """The one RUN step of the GPU's target that has `text` in it."""
    (step,) = (rest for keyword, rest in STAGE if keyword == "RUN" and text in rest)
    return step


def test_environment_of_the_gpu_image_is_what_its_libraries_need() -> None:
    pairs = " ".join(rest for keyword, rest in STAGE if keyword == "ENV").split()
    environment = dict(pair.split("=", maxsplit=1) for pair in pairs)
    assert environment["OMPI_MCA_coll_ucc_enable"] == "0"
    assert environment["USER"] == "deepinfer"


def test_cache_of_the_image_is_for_whoever_runs_it(image: ImageRoot) -> None:
    """The scripts run the container as the caller, whose number the image does not know."""
    image.write_program("useradd", "exit 0")
    # Only root may give files away; the rest of each command is done as it is written.
    image.write_program(
        "install", 'exec /usr/bin/install $(echo "$@" | sed -E "s/--(owner|group) [a-z]+//g")'
    )
    done = image.run(step_with("useradd"))
    assert done.returncode == 0, done.stderr
    assert (image.path / "srv/cache").stat().st_mode & 0o7777 == 0o1777
    assert (image.path / "srv/engines").is_dir()


def test_libraries_are_registered_and_then_tried_before_the_image_is_done() -> None:
    steps = [rest for keyword, rest in STAGE if keyword == "RUN"]
    registered, installed, tried = (
        next(number for number, step in enumerate(steps) if text in step)
        for text in ("ldconfig", "pip install", "deepinfer.trtllm_libraries")
    )
    assert registered < installed < tried


class ImageRoot:
    """A folder that plays `/` of the image: what a step writes and reads lies below it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "root"
        self.programs = folder / "programs"
        self.site = folder / "site"  # packages of the image
        for made in (self.path / "etc/ld.so.conf.d", self.programs, self.site):
            made.mkdir(parents=True)
        (self.path / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
        (self.path / MPI_CONFIGURATION).write_text("/opt/hpcx/ompi/lib\n")
        if LDCONFIG is not None:
            self.write_program("ldconfig", f"exec '{LDCONFIG}' -r '{self.path}' \"$@\"")

    def write_program(self, name: str, body: str) -> None:
        program = self.programs / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)

    def run(
        self, step: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        text = re.sub(r"(?<![\w.])/(etc|opt/deepinfer|wheels|srv)\b", rf"{self.path}/\1", step)
        environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "HOME": str(self.path),
            **(variables or {}),
        }
        return subprocess.run([*SHELL, text], env=environment, capture_output=True, text=True)

    def cached(self) -> dict[str, str]:
        """By name, where the dynamic loader finds the libraries that ldconfig has listed."""
        assert LDCONFIG is not None
        done = subprocess.run(
            [LDCONFIG, "-r", str(self.path), "-p"], capture_output=True, text=True, check=True
        )
        return dict(re.findall(r"^\t(\S+) \(.*\) => (\S+)$", done.stdout, re.M))


def make_library(root: Path, name: str) -> None:
    folder = root / LIBRARY_FOLDERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(COMPILER), "-shared", "-x", "c", "/dev/null", "-o", str(folder / name)]
    subprocess.run([*command, f"-Wl,-soname,{name}"], check=True)


@pytest.fixture
def image(tmp_path: Path) -> ImageRoot:
    return ImageRoot(tmp_path)


@pytest.fixture
def image_with_libraries(image: ImageRoot) -> ImageRoot:
    """As NVIDIA's image is: libraries in folders that its dynamic loader does not look into."""
    if COMPILER is None or LDCONFIG is None:
        pytest.skip("libraries need a C compiler and ldconfig to be made and found")
    for name in LIBRARY_FOLDERS:
        make_library(image.path, name)
    subprocess.run([LDCONFIG, "-r", str(image.path)], check=True)
    return image


def test_step_makes_the_loader_find_what_only_shells_found(
    image_with_libraries: ImageRoot,
) -> None:
    image = image_with_libraries
    assert image.cached().keys() == {"libmpi.so.40"}
    done = image.run(step_with("ldconfig"))
    assert done.returncode == 0, done.stderr
    assert image.cached() == {name: f"/{folder}/{name}" for name, folder in LIBRARY_FOLDERS.items()}
    (configuration,) = (image.path / "etc/ld.so.conf.d").glob("00-*.conf")
    folders = configuration.read_text().splitlines()
    assert f"/opt/nvidia/nvda_nixl/lib/{os.uname().machine}-linux-gnu" in folders
    assert {"/opt/nvidia/nvda_nixl/lib64", "/usr/local/ucx/lib"} < set(folders)


def add_python_of_the_image(image: ImageRoot) -> None:
    """`/opt/deepinfer/bin/python`, with DeepInfer, a `tensorrt`, and what the root's loader knows.

    The loader of this machine cannot read another root's cache, so that the folders in it go by
    LD_LIBRARY_PATH, from here on; the step must have left that unset.
    """
    package = image.site / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import ctypes\n\n"
        "for name in ('nvonnxparser', 'nvinfer_plugin', 'nvinfer'):\n"
        "    ctypes.CDLL(f'lib{name}.so.10')\n"
    )
    for name, version in (("tensorrt_llm", "1.2.1"), ("tensorrt", "10.14.1.48")):
        metadata = image.site / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    python = image.path / "opt/deepinfer/bin/python"
    python.parent.mkdir(parents=True)
    folders = ":".join(
        str(image.path / Path(found).parent.relative_to("/")) for found in image.cached().values()
    )
    python.write_text(
        "#!/bin/sh\n"
        '[ -z "${LD_LIBRARY_PATH:-}" ] || { echo "LD_LIBRARY_PATH is set" >&2; exit 99; }\n'
        f"LD_LIBRARY_PATH='{folders}' PYTHONPATH='{ROOT}:{image.site}' "
        f"exec '{sys.executable}' \"$@\"\n"
    )
    python.chmod(0o755)


def skip_if_here(name: str) -> None:
    """The loader of this machine serves the tests as well, with whatever is installed here."""
    program = f"import ctypes; ctypes.CDLL({name!r})"
    if run_probe(program).exit_code == 0:
        pytest.skip(f"{name} is installed on this machine, where it was to be absent")


LIBRARY_CHECK = "deepinfer.trtllm_libraries"
SHELL_VARIABLES = {"LD_LIBRARY_PATH": "/usr/local/tensorrt/lib"}  # of every bash of the image


def test_image_whose_libraries_load_is_made(image_with_libraries: ImageRoot) -> None:
    image = image_with_libraries
    assert image.run(step_with("ldconfig")).returncode == 0
    add_python_of_the_image(image)
    done = image.run(step_with(LIBRARY_CHECK), SHELL_VARIABLES)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in LIBRARY_FOLDERS)


def test_image_whose_loader_does_not_know_the_folders_is_not_made(
    image_with_libraries: ImageRoot,
) -> None:
    """The fault of the first version, in which a shell would have found them all."""
    skip_if_here("libnvinfer.so.10")
    add_python_of_the_image(image_with_libraries)
    folders = {str(image_with_libraries.path / folder) for folder in LIBRARY_FOLDERS.values()}
    done = image_with_libraries.run(
        step_with(LIBRARY_CHECK), {"LD_LIBRARY_PATH": ":".join(sorted(folders))}
    )
    assert done.returncode == 1
    assert "error: libnvinfer.so.10 does not load" in done.stderr
    assert "libmpi.so.40" not in done.stderr


@pytest.mark.parametrize("absent", ["libnvinfer_plugin.so.10", "libcudart.so.13", "libmpi.so.40"])
def test_image_without_one_library_is_not_made(
    image_with_libraries: ImageRoot, absent: str
) -> None:
    skip_if_here(absent)
    image = image_with_libraries
    (image.path / LIBRARY_FOLDERS[absent] / absent).unlink()
    assert image.run(step_with("ldconfig")).returncode == 0
    add_python_of_the_image(image)
    done = image.run(step_with(LIBRARY_CHECK), SHELL_VARIABLES)
    assert done.returncode == 1
    assert f"error: {absent} does not load" in done.stderr


def test_driver_that_is_not_there_while_the_image_is_made_is_no_fault(
    image_with_libraries: ImageRoot,
) -> None:
    image = image_with_libraries
    assert image.run(step_with("ldconfig")).returncode == 0
    add_python_of_the_image(image)
    (image.site / "tensorrt/__init__.py").write_text(
        "raise ImportError('libcuda.so.1: cannot open shared object file: No such file')\n"
    )
    assert image.run(step_with(LIBRARY_CHECK), SHELL_VARIABLES).returncode == 0


# The constraint step

IMAGE_PACKAGES = ["fastapi==0.120.1", "tensorrt_llm==1.2.1", "torch==2.9.1+cu130", "zipp==3.19.2"]
FAKE_PYTHON = """
case "$*" in
  "-m venv "*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python";;
  "-m pip list --format=freeze") cat "{lists}/$(basename "$(dirname "$0")").txt";;
  "-m pip install "*) printf '%s\\n' "$PIP_CONSTRAINT" "$@" > "{lists}/asked";;
  *) exit 9;;
esac
"""


def run_constraint_step(image: ImageRoot, after: list[str]) -> subprocess.CompletedProcess[str]:
    """With a Python that has IMAGE_PACKAGES before pip has run, and the packages `after` then."""
    lists = image.path / "lists"
    lists.mkdir()
    (lists / "programs.txt").write_text("".join(f"{line}\n" for line in IMAGE_PACKAGES))
    (lists / "bin.txt").write_text("".join(f"{line}\n" for line in reversed(after)))
    (image.path / "wheels").mkdir()
    (image.path / "wheels/deepinfer-0.1.0-py3-none-any.whl").touch()
    image.write_program("python3", FAKE_PYTHON.format(lists=lists))
    variables = {"PIP_ARGS": "--quiet", "PIP_CONSTRAINT": "/etc/pip/constraint.txt"}
    return image.run(step_with("pip install"), variables)


def test_packages_of_the_image_are_the_constraints(image: ImageRoot) -> None:
    done = run_constraint_step(image, [*IMAGE_PACKAGES, "uvloop==0.21.0", "deepinfer==0.1.0"])
    assert done.returncode == 0, done.stderr
    assert (image.path / "opt/deepinfer/image.txt").read_text().splitlines() == IMAGE_PACKAGES
    own_constraint, *asked = (image.path / "lists/asked").read_text().splitlines()
    assert own_constraint == ""
    assert asked[asked.index("--constraint") + 1] == str(image.path / "opt/deepinfer/image.txt")
    assert "--quiet" in asked and asked[-1].endswith("deepinfer-0.1.0-py3-none-any.whl")


CHANGED_PACKAGES = {
    "replaced": ["fastapi==0.120.1", "tensorrt_llm==1.2.1", "torch==2.13.0", "zipp==3.19.2"],
    "removed": ["fastapi==0.120.1", "tensorrt_llm==1.2.1", "zipp==3.19.2"],
}


@pytest.mark.parametrize("after", CHANGED_PACKAGES.values(), ids=CHANGED_PACKAGES.keys())
def test_package_of_the_image_that_pip_touches_stops_the_build(
    image: ImageRoot, after: list[str]
) -> None:
    done = run_constraint_step(image, [*after, "deepinfer==0.1.0"])
    assert done.returncode == 1
    assert done.stderr == "error: pip replaced torch==2.9.1+cu130\n"


def write_wheel(folder: Path, name: str, version: str, requires: str = "") -> Path:
    """A wheel without a module, which is all that pip needs to resolve and install it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.parametrize(("wanted", "is_made"), [("torch>=2", True), ("torch>=3", False)])
def test_real_pip_keeps_the_image_s_torch(image: ImageRoot, wanted: str, is_made: bool) -> None:
    """Without an index: what a wheel may bring is in a folder, and newer than the image's."""
    pip = Path(
        subprocess.run(
            [sys.executable, "-c", "import pip; print(pip.__path__[0])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    for part in (pip, *pip.parent.glob("pip-*.dist-info")):
        (image.site / part.name).symlink_to(part)
    with zipfile.ZipFile(write_wheel(image.path / "old", "torch", "2.9.1+cu130")) as wheel:
        wheel.extractall(image.site)
    write_wheel(image.path / "index", "torch", "3.1.0")
    write_wheel(image.path / "wheels", "deepinfer", "0.1.0", requires=wanted)
    real = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys._base_executable)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    image.write_program("python3", f"exec '{real}' \"$@\"")
    done = image.run(
        step_with("pip install"),
        {
            "PYTHONPATH": str(image.site),
            "PYTHONNOUSERSITE": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ARGS": f"--no-index --find-links {image.path}/index",
        },
    )
    assert (done.returncode == 0) is is_made, done.stderr
    if is_made:
        packages = (image.path / "opt/deepinfer/all.txt").read_text().splitlines()
        assert {"torch==2.9.1+cu130", "deepinfer==0.1.0"} < set(packages)
    else:
        assert "torch" in done.stdout + done.stderr
