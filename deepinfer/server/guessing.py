"""How engines guess tokens ahead, and which of them can: by prompt lookup, or by a draft engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepinfer.config import EngineSection
from deepinfer.errors import EngineError
from deepinfer.manifest import TOKENIZER_DIR, EngineFolder, find_damage, read_engine
from deepinfer.serving_limits import with_max_seq_len

BACKEND = "openvino"  # the only one whose library guesses as it is served
TOKENIZER_FILE = f"{TOKENIZER_DIR}/tokenizer.json"


def choose_draft(engines: Sequence[EngineFolder], section: EngineSection) -> EngineFolder | None:
    """The engine that guesses for `engines`, or None where none does.

    Raises EngineError for an engine that cannot guess, or not by this draft, when it is told to.
    """
    if section.draft_engine is None:
        if section.prompt_lookup:
            what = f"`engine.prompt_lookup` is {section.prompt_lookup}"
            _check_backends(engines, what, "--prompt-lookup")
        return None
    if section.prompt_lookup:
        raise EngineError(
            "`engine.prompt_lookup` and `engine.draft_engine` are both given; tokens are guessed "
            "in one way",
            hint="leave `--prompt-lookup` or `--draft-engine` out",
        )
    draft = with_max_seq_len(_read_draft(section.draft_engine), section.max_seq_len)
    what = f"`engine.draft_engine` is `{draft.manifest.name}`"
    _check_backends(engines, what, "--draft-engine")
    for engine in engines:
        _check_pair(engine, draft)
    return draft


def _check_backends(engines: Sequence[EngineFolder], what: str, flag: str) -> None:
    for engine in engines:
        backend = engine.manifest.backend.name
        if backend != BACKEND:
            raise EngineError(
                f"{what}; engine `{engine.manifest.name}` is of the `{backend}` backend, and only "
                f"`{BACKEND}` guesses tokens",
                hint=f"leave `{flag}` out, or choose another engine with `--model`",
            )


def _read_draft(folder: Path) -> EngineFolder:
    draft = read_engine(folder.absolute())
    damage = next(find_damage(draft, with_digests=False), None)
    if damage is not None:
        raise EngineError(
            f"draft engine `{draft.manifest.name}` is damaged: {damage}",
            hint="rebuild it with `deepinfer build --force`",
        )
    if draft.manifest.backend.name != BACKEND:
        raise EngineError(
            f"draft engine `{draft.manifest.name}` is of the `{draft.manifest.backend.name}` "
            f"backend, and only `{BACKEND}` has drafts",
            hint="build it with `--target cpu`",
        )
    return draft


def _check_pair(engine: EngineFolder, draft: EngineFolder) -> None:
    """A guess is a token id, so that both must mean the same by each."""
    own, its = engine.manifest, draft.manifest
    if (own.tokens.vocab_size, own.files.get(TOKENIZER_FILE)) != (
        its.tokens.vocab_size,
        its.files.get(TOKENIZER_FILE),
    ):
        raise EngineError(
            f"draft engine `{its.name}` has other tokens than engine `{own.name}`",
            hint="a draft is a smaller model of the same family, with the same tokenizer and "
            "vocabulary",
        )
    if its.limits.max_seq_len < own.limits.max_seq_len:
        raise EngineError(
            f"draft engine `{its.name}` takes sequences of {its.limits.max_seq_len:,} tokens; "
            f"engine `{own.name}` takes {own.limits.max_seq_len:,}",
            hint=f"serve both with `--max-seq-len {its.limits.max_seq_len}`, or with "
            f"`--max-seq-len {own.limits.max_seq_len}` if the draft's model has the positions",
        )
