"""The CPU, and whether OpenVINO loads on it."""

from __future__ import annotations

import json

from deepinfer.device import Cpu
from deepinfer.doctor.finding import Finding, Status
from deepinfer.process import ProbeResult, run_probe

OPENVINO_MACHINES = ("x86_64", "aarch64")
PROBE = """
import json, openvino, openvino_genai
capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
print(json.dumps({"version": openvino_genai.__version__, "capabilities": capabilities}))
"""


def check_openvino(result: ProbeResult) -> Finding:
    topic = "OpenVINO"
    if result.exit_code == 0:
        answer = json.loads(result.stdout.splitlines()[-1])
        capabilities = ", ".join(answer["capabilities"])
        return Finding(
            topic, Status.OK, f"{answer['version']} loads; the CPU offers {capabilities}"
        )
    if result.exit_code < 0:
        advice = "use a CPU or a virtual machine that has at least SSE4.2, better AVX2"
        return Finding(topic, Status.FAILED, f"loading it {result.failure}", advice)
    advice = "install openvino-genai again, in the version that DeepInfer asks for"
    return Finding(topic, Status.FAILED, f"does not load: {result.last_error_line}", advice)


def check_cpu(cpu: Cpu) -> Finding:
    cores = "1 core" if cpu.num_cores == 1 else f"{cpu.num_cores} cores"
    threads = "1 thread" if cpu.num_threads == 1 else f"{cpu.num_threads} threads"
    bf16 = "bf16 is native" if cpu.has_native_bf16 else "bf16 is computed in float32"
    int8 = "int8 is native" if cpu.has_native_int8 else "int8 is converted first"
    features = " ".join(sorted(cpu.features)) or "no known instruction set"
    seen = f"{cpu.name}, {cores}, {threads}; {features}; {bf16}, {int8}"
    if cpu.machine not in OPENVINO_MACHINES:
        advice = f"use one of {', '.join(OPENVINO_MACHINES)}: OpenVINO runs on no other CPU"
        return Finding("CPU", Status.FAILED, seen, advice)
    if cpu.machine == "x86_64" and "avx2" not in cpu.features:
        return Finding("CPU", Status.WARNING, seen, "use a CPU with AVX2; without it all is slow")
    return Finding("CPU", Status.OK, seen)


def probe_openvino() -> ProbeResult:
    return run_probe(PROBE)
