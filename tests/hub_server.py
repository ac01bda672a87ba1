# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A Hub on the loopback interface: as much of the Hub's API as loading and pushing pipelines needs, for folders on disk.

    with HubServer({"user/model": {"main": folder}}) as server:
        subprocess.run(…, env={**os.environ, **server.environment(cache)})
"""

import base64
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class HubServer:
    """
    Serves repositories until the `with` block ends.

    Args:
        repositories (`dict[str, dict[str, Path]]`): For each id the folder of each revision.
        storage (`Path`, *optional*): Where repositories are created that clients ask for.
    """

    def __init__(self, repositories: dict[str, dict[str, Path]], storage: Path | None = None) -> None:
        self.repositories = repositories
        self.storage = storage
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = "http://{}:{}".format(*self._server.server_address)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment variables that make a client use this server and a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": os.fspath(cache),
            "HF_TOKEN": "hf_of_no_value",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def files(self, folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, *args) -> None:
        self.hub.requests.append(self.requestline)

    def _send(self, status: int, content: object = b"", **headers: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content_Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str) -> None:
        self._send(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _revision(self, repository: str, revision: str) -> tuple[str, Path] | None:
        """The commit and the folder, or an answer that there is none."""
        revisions = self.hub.repositories.get(repository)
        if revisions is None:
            return self._missing("RepoNotFound")
        for name, folder in revisions.items():
            if revision in (name, commit_of(name)):
                return commit_of(name), folder
        return self._missing("RevisionNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
            found = self._revision(repository, rest[1] if rest else "main")
            if found is None:
                return
            commit, folder = found
            files = self.hub.files(folder)
            if rest[:1] == ["tree"]:
                sizes = {name: (folder / name).stat().st_size for name in files}
                return self._send(
                    200, [{"type": "file", "path": name, "size": sizes[name], "oid": commit} for name in files]
                )
            siblings = [{"rfilename": name} for name in files]
            return self._send(200, {"id": repository, "sha": commit, "siblings": siblings, "tags": []})
        if len(parts) > 4 and parts[2] == "resolve":
            found = self._revision("/".join(parts[:2]), parts[3])
            if found is None:
                return
            commit, folder = found
            path = folder.joinpath(*parts[4:])
            if not path.is_file():
                return self._missing("EntryNotFound")
            content = path.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            return self._send(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit)
        self._missing("RepoNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._read_chunks()
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            repository = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            if repository in self.hub.repositories:
                return self._send(409, {"error": "exists", "url": f"{self.hub.url}/{repository}"})
            folder = self.hub.storage / repository
            folder.mkdir(parents=True)
            self.hub.repositories[repository] = {"main": folder}
            return self._send(200, {"url": f"{self.hub.url}/{repository}"})
        if parts[-2:-1] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._send(200, {"files": modes})
        if parts[-2:-1] == ["commit"]:
            repository = "/".join(parts[2:4])
            folder = self.hub.repositories[repository]["main"]
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    path = folder / operation["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(operation["value"]["content"]))
            commit = commit_of("main")
            url = f"{self.hub.url}/{repository}/commit/{commit}"
            return self._send(200, {"commitUrl": url, "commitOid": commit, "success": True})
        if parts == ["api", "validate-yaml"]:
            return self._send(200, {"errors": [], "warnings": []})
        self._missing("RepoNotFound")

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body
