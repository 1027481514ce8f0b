"""A model hub on a local port: the few routes that huggingface_hub needs to read a repository."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Serves the folder of each repository; counts the bytes that leave it, by file name."""

    repositories: dict[str, Path]
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # status, X-Error-Code
    sent_bytes: Counter[str] = field(default_factory=Counter)
    url: str = ""


@contextmanager
def serve_hub(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def log_message(self, format: str, *args: object) -> None:
            """Requests are counted, not printed."""

        def answer(self) -> None:
            if match := re.fullmatch(r"/api/models/(.+?)(/revision/(.+))?", self.path):
                repo_id, revision = match[1], match[3] or "main"
                if not self.is_refused(repo_id, revision):
                    files = sorted(path.name for path in hub.repositories[repo_id].iterdir())
                    siblings = [{"rfilename": name} for name in files]
                    info = {"id": repo_id, "sha": COMMIT, "siblings": siblings}
                    self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif match := re.fullmatch(r"/(.+?)/resolve/(.+?)/(.+)", self.path):
                if not self.is_refused(match[1], match[2]):
                    self.send_path(hub.repositories[match[1]] / match[3])
            else:
                self.send(404, b"", {})

        def is_refused(self, repo_id: str, revision: str) -> bool:
            refusal = hub.refusals.get(repo_id)
            if repo_id not in hub.repositories and refusal is None:
                refusal = (404, "RepoNotFound")
            elif revision not in ("main", COMMIT):
                refusal = (404, "RevisionNotFound")
            if refusal is not None:
                self.send(refusal[0], b"", {"X-Error-Code": refusal[1]})
            return refusal is not None

        def send_path(self, path: Path) -> None:
            if not path.is_file():
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content = path.read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            status, wanted = 200, self.headers.get("Range")
            if wanted:
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                last = min(int(end or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
                status, content = 206, content[int(start) : last + 1]
            if self.command == "GET":
                hub.sent_bytes[path.name] += len(content)
            self.send(status, content, headers)

        def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
