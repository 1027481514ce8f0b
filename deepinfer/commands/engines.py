"""`deepinfer engines`: what the manifests in a folder of engines say, and whether it is true."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deepinfer.errors import EngineError
    from deepinfer.manifest import EngineFolder, EngineManifest

SUMMARY_HEADERS = (
    "NAME", "BACKEND", "PRECISION", "TARGET", "CONTEXT", "BATCH", "SIZE", "BUILT", "MODEL",
)  # fmt: skip


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command of this group takes."""
    command = click.option("--json", "is_json", is_flag=True, help="Print JSON.")(command)
    return click.option(
        "--engine-dir",
        type=click.Path(path_type=Path),
        default=Path("engines"),
        show_default=True,
        help="Folder of engines, or one engine.",
    )(command)


@click.group(no_args_is_help=False)
def engines() -> None:
    """List, inspect and verify engines."""


@engines.command("list")
@engine_options
@click.pass_context
def list_engines(ctx: click.Context, engine_dir: Path, is_json: bool) -> None:
    """List the engines in a folder, one a line.

    Exits with 1 when one of them cannot be read; the others are listed nevertheless.
    """
    from deepinfer.errors import EngineError
    from deepinfer.manifest import find_engine_folders, read_engine
    from deepinfer.terminal import echo, print_table

    found: list[EngineFolder] = []
    errors = []
    for folder in find_engine_folders(engine_dir):
        try:
            found.append(read_engine(folder))
        except EngineError as error:
            errors.append(error)
    if is_json:
        print_json([describe(engine) for engine in found])
    elif found:
        print_table((summarize(engine.manifest) for engine in found), headers=SUMMARY_HEADERS)
    elif not errors:
        click.echo(f"no engines in `{engine_dir}`; `deepinfer build --model sample` makes one")
    for unreadable in errors:
        echo(f"error: {unreadable.message}", err=True)
    if errors:
        ctx.exit(1)


@engines.command("inspect")
@click.argument("name")
@engine_options
def inspect_engine(name: str, engine_dir: Path, is_json: bool) -> None:
    """Show everything that an engine's manifest says.

    That includes the reason of each automatic choice that its build made.
    """
    from deepinfer.terminal import format_bytes, print_table

    engine = find_engine(engine_dir, name)
    if is_json:
        print_json(describe(engine))
        return
    print_table(facts(engine))
    click.echo()
    files = engine.manifest.files.items()
    print_table(
        ((path, format_bytes(file.size_bytes), file.sha256) for path, file in files),
        headers=("FILE", "SIZE", "SHA-256"),
    )
    if choices := engine.manifest.build.choices:
        click.echo()
        print_table(
            ((choice.name, choice.value, choice.reason) for choice in choices),
            headers=("CHOICE", "VALUE", "REASON"),
        )


@engines.command("verify")
@click.argument("name")
@engine_options
def verify_engine(name: str, engine_dir: Path, is_json: bool) -> None:
    """Read every byte of an engine and compare sizes and SHA-256 with its manifest.

    Prints a line for each difference, and exits with 1 when there is one.
    """
    from deepinfer.errors import EngineError
    from deepinfer.manifest import find_damage
    from deepinfer.terminal import echo

    engine = find_engine(engine_dir, name)
    manifest = engine.manifest
    damage = list(find_damage(engine, with_digests=True))
    if is_json:
        print_json({"name": manifest.name, "is_whole": not damage, "damage": damage})
    else:
        for line in damage:
            echo(line)
    if damage:
        count = "1 place" if len(damage) == 1 else f"{len(damage)} places"
        raise EngineError(
            f"engine `{manifest.name}` differs from its manifest in {count}",
            hint=f"rebuild it with `deepinfer build {manifest.source_flags} --force`",
        )
    if not is_json:
        echo(f"engine `{manifest.name}` is whole: {size(manifest)}")


def find_engine(engine_dir: Path, name: str) -> EngineFolder:
    """The engine whose folder or manifest is called `name`.

    One that cannot be read stands in the way only of those who ask for it by its folder.
    """
    from deepinfer.errors import EngineError
    from deepinfer.manifest import find_engine_folders, read_engine

    folders = {folder.resolve().name: folder for folder in find_engine_folders(engine_dir)}
    if name in folders:
        return read_engine(folders[name])
    for folder in folders.values():
        try:
            engine = read_engine(folder)
        except EngineError:
            continue
        if engine.manifest.name == name:
            return engine
    raise no_such_engine(engine_dir, name, sorted(folders))


def no_such_engine(engine_dir: Path, name: str, names: list[str]) -> EngineError:
    import difflib

    from deepinfer.errors import EngineError

    if not names:
        return EngineError(
            f"no engine `{name}`: `{engine_dir}` has none at all",
            hint="make one with `deepinfer build --model sample --output "
            f"{shlex.quote(str(engine_dir))}`",
        )
    listed = ", ".join(f"`{other}`" for other in names)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return EngineError(
        f"no engine `{name}` in `{engine_dir}`, which has {listed}",
        hint=f"did you mean `{nearest[0]}`?" if nearest else None,
    )


def describe(engine: EngineFolder) -> dict[str, Any]:
    """The manifest as JSON has it, with where the engine is and how large."""
    size_bytes = engine.manifest.size_bytes
    document = engine.manifest.model_dump(mode="json")
    return {"path": str(engine.path), "size_bytes": size_bytes, **document}


def print_json(document: Any) -> None:
    from deepinfer.terminal import echo

    echo(json.dumps(document, indent=2, ensure_ascii=False))


def summarize(manifest: EngineManifest) -> tuple[str, ...]:
    from deepinfer.terminal import format_bytes

    return (
        manifest.name,
        manifest.backend.name,
        manifest.precision,
        manifest.target.capability,
        f"{manifest.limits.max_seq_len:,}",
        str(manifest.limits.max_batch_size),
        format_bytes(manifest.size_bytes),
        manifest.build.created_at[: len("2026-01-31")],
        _model_and_base(manifest),
    )


def _model_and_base(manifest: EngineManifest) -> str:
    base = f" on {manifest.adapter.base_model_id}" if manifest.adapter else ""
    return f"{manifest.model.id}{base}"


def size(manifest: EngineManifest) -> str:
    from deepinfer.terminal import format_bytes

    num_files = len(manifest.files)
    files = "1 file" if num_files == 1 else f"{num_files} files"
    return f"{format_bytes(manifest.size_bytes)} in {files}"


def facts(engine: EngineFolder) -> list[tuple[str, str]]:
    """All that a manifest says of an engine as a whole, as names and values; files come apart."""
    return [
        ("name", engine.manifest.name),
        ("path", str(engine.path)),
        *_model_facts(engine.manifest),
        *_backend_facts(engine.manifest),
        *_limit_facts(engine.manifest),
        *_build_facts(engine.manifest),
    ]


def _model_facts(manifest: EngineManifest) -> list[tuple[str, str]]:
    model, tokens = manifest.model, manifest.tokens
    return [
        ("model", model.id),
        ("source", model.source),
        ("revision", model.revision or "-"),
        *_adapter_facts(manifest),
        ("architecture", model.architecture),
        ("parameters", f"{model.num_parameters:,}"),
        ("source digest", model.source_digest),
        ("trusts remote code", "yes" if model.trust_remote_code else "no"),
        ("vocabulary", f"{tokens.vocab_size:,} tokens"),
        ("bos token id", _id_text(tokens.bos_token_id)),
        ("pad token id", _id_text(tokens.pad_token_id)),
        ("eos token ids", ", ".join(map(str, tokens.eos_token_ids)) or "-"),
    ]


def _adapter_facts(manifest: EngineManifest) -> list[tuple[str, str]]:
    adapter = manifest.adapter
    if adapter is None:
        return []
    return [
        ("adapter", f"{adapter.id}, rank {adapter.rank}, merged"),
        ("adapter source", adapter.source),
        ("adapter revision", adapter.revision or "-"),
        ("adapter digest", adapter.digest),
        ("base model", adapter.base_model_id),
    ]


def _id_text(token_id: int | None) -> str:
    return "-" if token_id is None else str(token_id)


def _backend_facts(manifest: EngineManifest) -> list[tuple[str, str]]:
    backend, target = manifest.backend, manifest.target
    return [
        ("backend", f"{backend.name} {backend.version}"),
        *((f"library {name}", version) for name, version in backend.libraries.items()),
        *((f"setting {name}", str(value)) for name, value in backend.settings.items()),
        ("precision", manifest.precision),
        ("kv cache precision", manifest.kv_cache_precision),
        ("kv cache per token", f"{manifest.kv_bytes_per_token:,} bytes"),
        ("target", f"{target.kind} {target.capability} ({target.name})"),
        ("target features", ", ".join(target.features) or "-"),
    ]


def _limit_facts(manifest: EngineManifest) -> list[tuple[str, str]]:
    return [
        *((name.replace("_", " "), f"{value:,}") for name, value in manifest.limits),
        *_lora_facts(manifest),
        *((name.replace("_", " "), str(value)) for name, value in manifest.parallelism),
    ]


def _lora_facts(manifest: EngineManifest) -> list[tuple[str, str]]:
    lora = manifest.lora
    if lora is None:
        return []
    return [
        ("max lora rank", f"{lora.max_rank:,}"),
        ("max loras", f"{lora.max_loras:,}"),
        ("lora modules", ", ".join(lora.module_shapes)),
    ]


def _build_facts(manifest: EngineManifest) -> list[tuple[str, str]]:
    from deepinfer.terminal import format_bytes

    build = manifest.build
    return [
        ("size", size(manifest)),
        ("built at", build.created_at),
        ("built by", f"deepinfer {build.deepinfer_version}"),
        ("build time", f"{build.duration_s:.1f} s"),
        ("build peak memory", format_bytes(build.peak_memory_bytes)),
        ("plan digest", build.plan_digest),
        ("schema version", str(manifest.schema_version)),
    ]
