"""How an engine is cut over several GPUs: which cuts a model and a machine allow, and at what cost.

Tensor parallel cuts every layer, and adds up the parts after each; pipeline parallel shares out
whole layers, and hands on one hidden state.
"""

from __future__ import annotations

from deepinfer.checkpoint import ModelDims
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice, Parallelism

NO_PEER_ACCESS_ENV = {"NCCL_P2P_DISABLE": "1"}


def choose_parallelism(
    device: TargetDevice, dims: ModelDims, options: BuildOptions
) -> tuple[Parallelism, tuple[Choice, ...]]:
    """Raises PlanError for a cut that the model or the machine does not allow."""
    parallelism = Parallelism(
        tensor_parallel_size=options.tensor_parallel_size,
        pipeline_parallel_size=options.pipeline_parallel_size,
    )
    obstacle = find_obstacle(parallelism, dims)
    if obstacle:
        raise PlanError(obstacle, hint="1, 2, 4 and 8 go with most models")
    num_gpus = parallelism.world_size
    assert device.gpu is not None
    if device.is_here and num_gpus > len(device.gpu.free_bytes):
        raise PlanError(
            f"the engine is asked to run on {num_gpus} GPUs; this machine has "
            f"{len(device.gpu.free_bytes)} {device.name}",
            hint="lower `--tensor-parallel-size` times `--pipeline-parallel-size`",
        )
    sizes = parallelism.model_dump()
    choices = [
        Choice(name=name, value=str(size), reason=AS_ASKED)
        for name, size in sizes.items()
        if size > 1
    ]
    if nccl_env(device, parallelism):
        choices.append(_explain_nccl_env())
    return parallelism, tuple(choices)


def find_obstacle(parallelism: Parallelism, dims: ModelDims) -> str | None:
    """Why the model cannot be cut so; None when it can."""
    tensor, stages = parallelism.tensor_parallel_size, parallelism.pipeline_parallel_size
    for name, size in (
        ("attention heads", dims.num_attention_heads),
        ("MLP width", dims.expert_intermediate_size or dims.intermediate_size),
    ):
        if size % tensor:
            return f"`--tensor-parallel-size {tensor}` does not divide the {name} {size:,}"
    if dims.num_kv_heads % tensor and tensor % dims.num_kv_heads:
        return f"`--tensor-parallel-size {tensor}` does not divide the KV heads {dims.num_kv_heads}"
    if dims.num_layers % stages:
        return f"`--pipeline-parallel-size {stages}` does not divide the layers {dims.num_layers}"
    return None


def nccl_env(device: TargetDevice, parallelism: Parallelism) -> dict[str, str]:
    assert device.gpu is not None
    if parallelism.world_size == 1 or device.gpu.has_peer_access:
        return {}
    return dict(NO_PEER_ACCESS_ENV)


def find_warnings(device: TargetDevice, parallelism: Parallelism) -> tuple[str, ...]:
    if parallelism.tensor_parallel_size == 1 or not nccl_env(device, parallelism):
        return ()
    return (
        f"tensor parallel over {device.name}: every layer's sums go through host memory; "
        "`--pipeline-parallel-size` sends far less",
    )


def _explain_nccl_env() -> Choice:
    value = ", ".join(f"{name}={value}" for name, value in NO_PEER_ACCESS_ENV.items())
    reason = "GeForce drivers allow no peer access, and NCCL can hang when it tries"
    return Choice(name="nccl_env", value=value, reason=reason)
