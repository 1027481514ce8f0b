"""Benchmarks: what a server gives over HTTP, and what an engine gives without it.

`deepinfer bench serve` is a client of any OpenAI-compatible server, ours or a peer's, and so
nothing here knows the server's code. `deepinfer bench engine` asks an engine process for tokens
and holds the rates against what this machine can do at most.
"""
