"""The server that is measured, and how a request to it looks on the wire.

The key is a part of it, so a target is never printed or kept in a report.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from deepinfer import __version__
from deepinfer.errors import ConfigError

Route = Literal["completions", "chat"]
PATHS: dict[Route, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
PORTS = {"http": 80, "https": 443}


class Prompt(msgspec.Struct, frozen=True):
    """What one request asks: a text or token ids, and how long an answer."""

    content: str | tuple[int, ...]
    max_tokens: int


class Target(msgspec.Struct, frozen=True, kw_only=True):
    scheme: Literal["http", "https"]
    host: str
    port: int
    base_path: str = ""
    api_key: str | None = None
    model: str = ""
    route: Route = "completions"
    is_streaming: bool = True
    with_usage: bool = True  # a stream is asked to end with its usage
    ignores_eos: bool = False
    extra: dict[str, Any] = {}  # fields that are sent along as they are

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.base_path}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.scheme == "https" else None

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Greedy, so that two runs ask for the same work; `extra` has the last word."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": prompt.max_tokens,
            "temperature": 0,
            "stream": self.is_streaming,
        }
        if self.route == "chat":
            fields["messages"] = [{"role": "user", "content": prompt.content}]
        else:
            fields["prompt"] = prompt.content
        if self.is_streaming and self.with_usage:
            fields["stream_options"] = {"include_usage": True}
        if self.ignores_eos:
            fields["ignore_eos"] = True
        return fields | self.extra

    def request(self, prompt: Prompt) -> bytes:
        return self.render("POST", PATHS[self.route], self.body(prompt))

    def render(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> bytes:
        """A whole HTTP/1.1 request."""
        body = b"" if fields is None else msgspec.json.encode(fields)
        default = self.port == PORTS[self.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.base_path}{path} HTTP/1.1",
            f"Host: {host}" if default else f"Host: {host}:{self.port}",
            f"User-Agent: deepinfer-bench/{__version__}",
            "Accept: text/event-stream, application/json",
            f"Content-Length: {len(body)}",
        ]
        if body:
            lines.append("Content-Type: application/json")
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join([*lines, "", ""]).encode() + body


def parse_url(url: str) -> Target:
    """A target from the address that clients of the server are given, with or without `/v1`."""
    hint = "give the server's address, such as `http://127.0.0.1:8000`"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"`{url}` is not a URL", hint=hint) from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise ConfigError(f"`{url}` is not a URL of http or https", hint=hint)
    if parts.query or parts.fragment or parts.username:
        raise ConfigError(f"`{url}` holds more than an address", hint=hint)
    return Target(
        scheme="https" if parts.scheme == "https" else "http",
        host=parts.hostname,
        port=port or PORTS[parts.scheme],
        base_path=parts.path.rstrip("/").removesuffix("/v1").rstrip("/"),
    )
