"""Which LoRA adapters an engine for GPUs will take by request: their rank, number and layers.

Pure. A merged adapter is no concern of this module: the engine does not know of it.
"""

from __future__ import annotations

from deepinfer.adapter import adaptable_modules
from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice, LoraLimits
from deepinfer.terminal import format_bytes

DEFAULT_MAX_LORAS = 4


def choose_lora(
    checkpoint: Checkpoint, options: BuildOptions
) -> tuple[LoraLimits | None, tuple[Choice, ...]]:
    """None without `--max-lora-rank`: an engine that adapts costs memory and some speed.

    Raises PlanError for options without it, and for a model with no layer that could be adapted.
    """
    if options.max_lora_rank is None:
        if options.max_loras is not None:
            raise PlanError(
                "`--max-loras` is for engines that take adapters",
                hint="add `--max-lora-rank`, such as `--max-lora-rank 64`",
            )
        return None, ()
    modules = adaptable_modules(checkpoint)
    if not modules:
        raise PlanError(
            f"`{checkpoint.id}` has none of the layers that TensorRT-LLM adapts by request",
            hint="merge the adapter with `--lora`, and leave `--max-lora-rank` away",
        )
    limits = LoraLimits(
        max_rank=options.max_lora_rank,
        max_loras=options.max_loras or DEFAULT_MAX_LORAS,
        num_layers=checkpoint.dims.num_layers,
        module_shapes=modules,
    )
    return limits, _explain(limits, options)


def _explain(limits: LoraLimits, options: BuildOptions) -> tuple[Choice, ...]:
    each = f"{format_bytes(limits.adapter_bytes)} each at the highest rank, held in memory"
    return (
        Choice(name="max_lora_rank", value=str(limits.max_rank), reason=AS_ASKED),
        Choice(
            name="max_loras",
            value=str(limits.max_loras),
            reason=AS_ASKED if options.max_loras else each,
        ),
        Choice(
            name="lora_modules",
            value=", ".join(limits.module_shapes),
            reason="every linear layer that the library adapts",
        ),
    )
