"""Where a server's configuration comes from: defaults < YAML < DEEPINFER_* environment < flags.

Each value remembers its source, so that a wrong one is reported there, by line, variable or option.
Which keys there are, `config.py` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from deepinfer.config import (
    ENVIRONMENT_PREFIX,
    ServeConfig,
    config_fields,
    environment_name,
    is_secret,
)
from deepinfer.errors import ConfigError
from deepinfer.validation import describe_rule, show_value, suggest

MASK = "********"
# Keys that earlier versions had, and what to do instead.
REMOVED = {
    "server.api_workers": "remove it: one API process sends more tokens than a GPU makes; past one "
    "process, run several servers behind a load balancer",
}
NULL_TAG = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Setting:
    """One value that somebody gave, and where: "`--port`", "`configs/cpu.yaml` line 3"."""

    path: str
    value: Any
    source: str


@dataclass(frozen=True)
class ResolvedConfig:
    """The outcome, with the source of each value that is not a default, by path."""

    config: ServeConfig
    sources: Mapping[str, str]


def load_config(
    file: Path | None, environment: Mapping[str, str], flags: Iterable[Setting]
) -> ResolvedConfig:
    """Merge the layers and check the outcome. Raises ConfigError, naming the source."""
    from_file = read_config_file(file) if file is not None else ()
    # A later layer replaces what an earlier one says about the same key.
    settings = {
        setting.path: setting
        for layer in (from_file, read_environment(environment), flags)
        for setting in layer
    }
    nested: dict[str, dict[str, Any]] = {}
    for setting in settings.values():
        section, key = setting.path.split(".")
        nested.setdefault(section, {})[key] = setting.value
    try:
        config = ServeConfig.model_validate(nested)
    except ValidationError as error:
        raise _explain(error, settings) from None
    return ResolvedConfig(config, {path: setting.source for path, setting in settings.items()})


def _explain(error: ValidationError, settings: Mapping[str, Setting]) -> ConfigError:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"][:2])
    setting = settings[path]
    given = "" if is_secret(config_fields()[path]) else f"; {show_value(setting.value)} was given"
    return ConfigError(
        f"{setting.source}: `{path}` {describe_rule(first)}{given}",
        hint=f"{path}: {config_fields()[path].description}",
    )


def read_environment(environment: Mapping[str, str]) -> Iterator[Setting]:
    """The settings in DEEPINFER_* variables. Raises ConfigError for a variable without a key."""
    paths = {environment_name(path): path for path in config_fields()}
    for name, value in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        for removed in REMOVED:
            if name == environment_name(removed):
                raise removed_setting(removed, f"environment variable `{name}`")
        if name not in paths:
            raise ConfigError(
                f"unknown environment variable `{name}`",
                hint=suggest(name, paths),
            )
        yield Setting(paths[name], value, f"environment variable `{name}`")


def removed_setting(path: str, source: str) -> ConfigError:
    """For a key that this version has no longer."""
    return ConfigError(f"{source}: `{path}` was removed", hint=REMOVED[path])


def read_config_file(file: Path) -> list[Setting]:
    """The settings in a YAML file. Raises ConfigError with the line of what is wrong."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the configuration file `{file}`: {reason}") from error
    try:
        return list(_ConfigFile(file, text).read())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"`{file}`{where}: not valid YAML: {error.problem}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets
        raise ConfigError(f"`{file}`: not valid YAML: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"`{file}`: not valid YAML: {str(error).splitlines()[0]}") from error


class _ConfigFile:
    """Walks the nodes of a YAML file instead of loading it, to know the line of everything."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._loader = yaml.SafeLoader(text)

    def read(self) -> Iterator[Setting]:
        root = self._loader.get_single_node()
        if root is None:
            return
        known = config_fields()
        for section, at, section_node in self._items(root, "the file"):
            if section not in ServeConfig.model_fields:
                self._fail(at, "unknown section", section, ServeConfig.model_fields)
            if section_node.tag == NULL_TAG:
                continue
            for key, at, node in self._items(section_node, f"`{section}`"):
                path = f"{section}.{key}"
                if path in REMOVED:
                    raise removed_setting(path, at)
                if path not in known:
                    self._fail(at, "unknown key", path, known)
                yield Setting(path, self._loader.construct_object(node, deep=True), at)

    def _items(self, node: yaml.Node, name: str) -> Iterator[tuple[str, str, yaml.Node]]:
        """Each key, where it stands, and the node of its value."""
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{self._at(node)}: {name} must hold keys and values")
        seen: set[str] = set()
        for key_node, value_node in node.value:
            at, key = self._at(key_node), str(key_node.value)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{at}: a key must be a word")
            if key in seen:
                raise ConfigError(f"{at}: `{key}` is given twice")
            seen.add(key)
            yield key, at, value_node

    def _at(self, node: yaml.Node) -> str:
        return f"`{self._file}` line {node.start_mark.line + 1}"

    def _fail(self, at: str, what: str, name: str, known: Iterable[str]) -> NoReturn:
        raise ConfigError(f"{at}: {what} `{name}`", hint=suggest(name, known))


def format_config(resolved: ResolvedConfig) -> str:
    """The outcome as YAML, each value with its source, secrets masked."""
    lines: list[str] = []
    for path, field in config_fields().items():
        section, key = path.split(".")
        if f"{section}:" not in lines:
            lines.append(f"{section}:")
        value = getattr(getattr(resolved.config, section), key)
        if value is not None and is_secret(field):
            value = MASK
        source = resolved.sources.get(path, "default").replace("`", "")
        lines.append(f"  {key}: {_to_yaml(value)}  # {source}")
    return "\n".join(lines) + "\n"


def _to_yaml(value: object) -> str:
    plain = str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).split("\n")[0]
