"""Benchmarks of servers over HTTP, and of engines without it.

`deepinfer bench serve` is a client of any OpenAI-compatible server, so nothing here imports the
server's code. `deepinfer bench engine` runs an engine process and compares its rates with the
limits of this machine.
"""
