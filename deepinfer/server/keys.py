"""The keys that open a server: how a line of the key file is read, and whose key a client sent.

Of a key only its digest is kept, and no message quotes a line: a word in the wrong place may be a
key. How a key travels in a request is `auth.py`'s business.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepinfer.config import LimitsSection, ServeConfig
from deepinfer.errors import ConfigError

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LIMIT = re.compile(r"([a-z_]+)=([0-9]{1,12}|none)")
FORM = "a line is `key` or `name: key`; limits such as `requests_per_minute=60` may follow"
QUOTES = "\"'"
NO_LIMITS = LimitsSection()


@dataclass(frozen=True)
class Key:
    """A key by its name, which logs and metrics say, and what it may do."""

    name: str
    digest: bytes = field(repr=False)
    limits: LimitsSection = NO_LIMITS


class KeyRing:
    """The keys at this moment. Without one, everybody is let in."""

    def __init__(self, keys: Sequence[Key] = (), limits: LimitsSection = NO_LIMITS) -> None:
        """`limits` are those of a request that comes without a key."""
        self._limits = limits
        self.replace(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def find(self, offered: bytes) -> Key | None:
        """Whose key that is. All are compared each time, so that the time taken tells nothing."""
        digest = digest_of(offered)
        found = [key for key in self._keys if hmac.compare_digest(digest, key.digest)]
        return found[0] if found else None

    def limits_of(self, name: str) -> LimitsSection:
        """Those of the key called `name`; "" is no key."""
        key = self._by_name.get(name)
        return self._limits if key is None else key.limits

    def reload(self, config: ServeConfig) -> None:
        """Read them again. A file that cannot be read, or is wrong, changes nothing."""
        try:
            keys = read_keys(config)
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error.message)
            return
        before = set(self._by_name)
        self.replace(keys)
        now = set(self._by_name)
        new, gone = _list_names(now - before), _list_names(before - now)
        logger.info("%d keys read again; new: %s; gone: %s", len(keys), new, gone)

    def replace(self, keys: Sequence[Key]) -> None:
        """From now on these are the keys, and no others."""
        self._keys = tuple(keys)
        self._by_name = {key.name: key for key in keys}


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(config: ServeConfig) -> list[Key]:
    """Every key that the server accepts; none when it asks for none. Raises ConfigError."""
    keys: list[Key] = []
    if config.server.api_key is not None:
        text = config.server.api_key.get_secret_value()
        keys += parse_keys(text, "`server.api_key`", "api-key", config.limits)
    if config.server.api_key_file is not None:
        file = config.server.api_key_file
        keys += parse_keys(_read(file), f"the key file `{file}`", "key", config.limits)
    _check_unique(keys)
    return keys


def parse_keys(text: str, source: str, prefix: str, limits: LimitsSection) -> list[Key]:
    """The keys in `text`, one a line. Raises ConfigError with the line of what is wrong.

    `prefix` begins the names of keys that come without one; `limits` are those of keys whose line
    has no others.
    """
    lines = enumerate((line.split() for line in text.splitlines()), start=1)
    keys = [
        _parse_line(words, f"{source} line {number}", f"{prefix}-{number}", limits)
        for number, words in lines
        if words and not words[0].startswith("#")
    ]
    if not keys:
        # Serving without a key because its file happens to be empty would be a nasty surprise.
        raise ConfigError(f"{source} holds no key", hint=FORM)
    return keys


def _parse_line(words: list[str], at: str, default_name: str, limits: LimitsSection) -> Key:
    limits, words = _take_limits(words, at, limits)
    name, key = default_name, words[-1]
    if len(words) == 2:
        name = words[0].removesuffix(":")
    elif len(words) > 2 or key.endswith(":"):
        raise ConfigError(f"{at} is not a name and a key", hint=FORM)
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{at}: a name has up to 64 letters, digits and `.`, `_`, `@`, `-`", hint=FORM
        )
    if key[0] in QUOTES or not key.isprintable():
        raise ConfigError(f"{at}: a key stands there as it is sent, without quotes", hint=FORM)
    return Key(name, digest_of(key.encode()), limits)


def _take_limits(
    words: list[str], at: str, limits: LimitsSection
) -> tuple[LimitsSection, list[str]]:
    """What the words at the end say of limits, and the words before them."""
    own: dict[str, int | None] = {}
    while len(words) > 1 and (match := LIMIT.fullmatch(words[-1])):
        name, value = match.groups()
        if name not in LimitsSection.model_fields or value == "0":
            known = ", ".join(f"`{known}`" for known in LimitsSection.model_fields)
            raise ConfigError(f"{at}: a limit is one of {known}, with 1 or more, or none")
        own[name] = None if value == "none" else int(value)
        words = words[:-1]
    return limits.model_copy(update=own), words


def _check_unique(keys: Sequence[Key]) -> None:
    by_name: dict[str, Key] = {}
    by_digest: dict[bytes, Key] = {}
    for key in keys:
        if by_name.setdefault(key.name, key) is not key:
            raise ConfigError(f"two keys are called `{key.name}`", hint="give one another name")
        if (other := by_digest.setdefault(key.digest, key)) is not key:
            raise ConfigError(
                f"`{other.name}` and `{key.name}` are the same key", hint="give it one name"
            )


def _read(file: Path) -> str:
    try:
        if file.stat().st_mode & stat.S_IWOTH:
            logger.warning(
                "every user of this machine can write to the key file `%s`, and so add a key; "
                "`chmod o-w` takes that away",
                file,
            )
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the key file `{file}`: {reason}") from error


def _list_names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"
