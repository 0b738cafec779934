"""A small Hugging Face hub on 127.0.0.1: what huggingface_hub's own client asks of it, and faults on demand."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


@dataclass
class Fault:
    """What happens instead of an answer, to requests whose line contains `where`, so many `times`.

    kind: an HTTP status, "hang" (no answer), "cut" (half of the body, then nothing) or "short" (a smaller file, whole).
    """

    where: str
    kind: int | str
    times: int = 1
    code: str = ""


@dataclass
class Hub:
    """The server's repositories, faults, and what was asked of it.

    repositories: id -> (commit, folder) · requests: "GET /path", in order · sent: bytes of files' bodies ·
    resumed_at: where requests for the rest of a file began.
    """

    repositories: dict[str, tuple[str, Path]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    resumed_at: list[int] = field(default_factory=list)
    address: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, folder: Path) -> str:
        """Serve a folder as a repository; return its commit."""
        commit = hashlib.sha1(name.encode()).hexdigest()
        self.repositories[name] = (commit, folder)
        return commit

    def fault_of(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.where in line and fault.times > 0:
                fault.times -= 1
                return fault
        return None


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Start the server in a thread; `shutdown` ends it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            line = f"{self.command} {path}"
            hub.requests.append(line)
            fault = hub.fault_of(line)
            if fault and isinstance(fault.kind, int):
                return self.refuse(fault.kind, fault.code)
            if fault and fault.kind == "hang":
                hub.closing.wait(20)
                self.close_connection = True
                return None
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                return self.about("/".join(parts[2:4]), parts[4:])
            if len(parts) > 4 and parts[2] == "resolve":
                return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body, fault)
            return self.refuse(404, "EntryNotFound")

        def about(self, name: str, rest: list[str]) -> None:
            if name not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            commit, folder = hub.repositories[name]
            if rest and rest[1] not in ("main", commit):
                return self.refuse(404, "RevisionNotFound")
            files = sorted(f for f in folder.rglob("*") if f.is_file())
            listed = [(f.relative_to(folder).as_posix(), f.stat().st_size, etag_of(f)) for f in files]
            if rest[:1] == ["tree"]:
                return self.say([{"type": "file", "path": n, "size": s, "oid": e} for n, s, e in listed])
            siblings = [{"rfilename": n, "size": s, "blobId": e} for n, s, e in listed]
            facts = {"_id": "0", "id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
            return self.say(facts | {"downloads": 0, "likes": 0})

        def file(self, name: str, revision: str, path: str, body: bool, fault: Fault | None) -> None:
            if name not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            commit, folder = hub.repositories[name]
            if revision not in ("main", commit):
                return self.refuse(404, "RevisionNotFound")
            if not (folder / path).is_file():
                return self.refuse(404, "EntryNotFound")
            data = (folder / path).read_bytes()
            if fault and fault.kind == "short":
                data = data[: len(data) // 2]
            begin = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            start = int(begin) if begin else 0
            hub.resumed_at += [start] if start else []
            self.send_response(206 if begin else 200)
            self.send_header("ETag", f'"{etag_of(folder / path)}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            if begin:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if not body:
                return None
            rest = data[start:]
            if fault and fault.kind == "cut":
                rest, self.close_connection = rest[: len(rest) // 2], True
            hub.sent += len(rest)
            self.wfile.write(rest)
            return None

        def say(self, value) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that has given up
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


@functools.cache
def etag_of(file: Path) -> str:
    """Return what names a file's content, as git does; served files don't change."""
    return hashlib.sha1(file.read_bytes()).hexdigest()
