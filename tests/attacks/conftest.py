"""The server that the HTTP tests share."""

from tests.server.conftest import http, server

__all__ = ["http", "server"]
