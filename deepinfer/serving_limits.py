"""How long an engine's sequences may be while it is served, if not as long as it was built for.

The server, its workers and the engine process each read an engine from its folder; all of them set
`max_seq_len` here, so that every reader of the manifest sees the same limits. A GPU's engine has
its limit compiled in. In a CPU's engine it is only a number: the graph has no length, and rotary
embeddings are computed from each token's position.
"""

from __future__ import annotations

from deepinfer.checkpoint import CONFIG_NAME, read_positions
from deepinfer.errors import CheckpointError, EngineError
from deepinfer.manifest import TOKENIZER_DIR, EngineFolder


def with_max_seq_len(engine: EngineFolder, max_seq_len: int | None) -> EngineFolder:
    """`engine` with sequences of at most `max_seq_len` tokens; None leaves it as it was built.

    Raises EngineError for more tokens than were compiled into a GPU's engine, or than the model of
    a CPU's engine has positions.
    """
    limits = engine.manifest.limits
    if max_seq_len is None or max_seq_len == limits.max_seq_len:
        return engine
    if max_seq_len > limits.max_seq_len:
        _check_raise(engine, max_seq_len)
    max_input_len = max_seq_len - 1
    if limits.max_input_len < limits.max_seq_len - 1:  # somebody asked for shorter prompts
        max_input_len = min(max_input_len, limits.max_input_len)
    served = limits.model_copy(update={"max_seq_len": max_seq_len, "max_input_len": max_input_len})
    manifest = engine.manifest.model_copy(update={"limits": served})
    return engine.model_copy(update={"manifest": manifest})


def _check_raise(engine: EngineFolder, max_seq_len: int) -> None:
    manifest = engine.manifest
    built = manifest.limits.max_seq_len
    wish = f"`engine.max_seq_len` is {max_seq_len:,}"
    rebuild = f"rebuild it with `deepinfer build {manifest.source_flags} --max-seq-len"
    if manifest.target.kind == "gpu":
        raise EngineError(
            f"engine `{manifest.name}` was compiled for sequences of at most {built:,} tokens; "
            f"{wish}",
            hint=f"{rebuild} {max_seq_len}`, or serve it with `--max-seq-len {built}` or lower",
        )
    path = engine.tokenizer_dir / CONFIG_NAME
    try:
        positions = read_positions(path)
    except CheckpointError as error:
        raise EngineError(
            f"engine `{manifest.name}` was built for sequences of {built:,} tokens; {wish}, and "
            f"its {TOKENIZER_DIR}/{CONFIG_NAME} does not say how many the model takes: "
            f"{error.message}",
            hint=f"serve it with `--max-seq-len {built}` or lower, or {rebuild} {max_seq_len}`",
        ) from error
    if max_seq_len > positions.max_positions:
        why = ""
        if positions.is_limited_by_rope:
            why = " (its RoPE changes for longer sequences, which would change others in a batch)"
        raise EngineError(
            f"engine `{manifest.name}` has {positions.max_positions:,} positions{why}; {wish}",
            hint=f"`--max-seq-len {positions.max_positions}` or lower",
        )
