"""The commands, one a file: `deepinfer.commands.build` holds the click command `build`, and so on.

A module here imports only click and the standard library at its top; what a command needs is
imported inside its body, so that no command pays for another. The summaries live here, where
`deepinfer --help` reads them without importing any command.
"""

from __future__ import annotations

SUMMARIES = {
    "build": "Compile a Hugging Face checkpoint into an engine",
    "serve": "Serve engines behind OpenAI-compatible routes",
    "bench": "Measure a server over HTTP, or an engine without it",
    "engines": "List, inspect and verify engines",
    "doctor": "Check what works on this machine, and what to do about the rest",
}
