"""The socket that a server listens on, taken before anything slow begins, and its address."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from deepinfer.errors import ConfigError

BACKLOG = 2048
# What the kernel keeps for a client that reads slowly; by itself it would go to megabytes.
SEND_BUFFER_BYTES = 256 * 1024


def listen(host: str, port: int, *, stalled_client_timeout_s: float) -> socket.socket:
    """A listening socket. Raises ConfigError when the address cannot be had.

    The kernel drops a connection whose client takes nothing of what is sent for so long: closing
    it from here would wait for the client to read the rest.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"cannot listen on `{host}`: {(error.strerror or str(error)).lower()}",
            hint="set another with `--host`",
        ) from None
    return _open(family, address, (host, port), stalled_client_timeout_s)


def _open(
    family: socket.AddressFamily,
    address: Any,
    asked: tuple[str, int],
    stalled_client_timeout_s: float,
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit both.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            timeout_ms = int(stalled_client_timeout_s * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _explain(error, *asked) from None
    return listener


def _explain(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is already in use",
            hint="choose another with `--port`; 0 takes a free one",
        )
    reason = (error.strerror or str(error)).lower()
    return ConfigError(f"cannot listen on port {port} of {host}: {reason}")


def is_public(listener: socket.socket) -> bool:
    """Whether other machines can reach it."""
    return not ipaddress.ip_address(_address(listener)).is_loopback


def base_url(listener: socket.socket, *, has_tls: bool = False) -> str:
    """The URL to give to a client on this machine."""
    address = ipaddress.ip_address(_address(listener))
    if address.is_unspecified:
        host = "localhost"
    else:
        host = f"[{address}]" if address.version == 6 else str(address)
    scheme = "https" if has_tls else "http"
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def _address(listener: socket.socket) -> str:
    address: str = listener.getsockname()[0]
    return address.partition("%")[0]  # without the zone of a link-local address
