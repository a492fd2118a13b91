"""A small Hub on this machine, for what a push and a load ask of one: `with hub(folder) as endpoint: ...`.

Repositories are folders, a commit is a directory of its own, and large files go through the LFS calls. Only the server
is a stand-in; the client is huggingface_hub itself, in a process whose `HF_ENDPOINT` names this one.
"""

import base64
import hashlib
import json
import re
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def _handler(root: Path):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _answer(self, content=b"", status=200, headers=None):
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _missing(self):
            self._answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split("?")[0]
            if found := re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<at>[^/]+)/(?P<file>.+)", path):
                return self._file(**found.groupdict())
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
                folder = _commit(root / found[1], found[2])
                names = sorted(_files(folder)) if folder else []
                return self._answer([_describe(folder / name, name) for name in names])
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
                folder = _commit(root / found[1], "main")
                if folder is None:
                    return self._missing()
                siblings = [{"rfilename": name} for name in _files(folder)]
                return self._answer({"id": found[1], "sha": folder.name, "siblings": siblings, "private": False})
            return self._missing()

        def _file(self, repo, at, file):
            folder = _commit(root / repo, at)
            if folder is None or not (folder / file).is_file():
                return self._missing()
            content = (folder / file).read_bytes()
            mark = f'"{hashlib.sha256(content).hexdigest()}"'
            headers = {"X-Repo-Commit": folder.name, "ETag": mark, "X-Linked-Etag": mark}
            return self._answer(content, 200, headers | {"X-Linked-Size": str(len(content))})

        def do_POST(self):
            path, body = self.path.split("?")[0], self._body()
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'user'}/{asked['name']}"
                (root / name).mkdir(parents=True, exist_ok=True)
                return self._answer({"url": f"{self._endpoint()}/{name}", "id": name})
            if path == "/api/validate-yaml":
                return self._answer({"errors": [], "warnings": []})
            if path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                modes = [
                    {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                     "shouldIgnore": False}
                    for file in files
                ]  # fmt: skip
                return self._answer({"files": modes})
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {"oid": item["oid"], "size": item["size"], "actions": {"upload": {"href": self._lfs(item["oid"])}}}
                    for item in json.loads(body)["objects"]
                ]
                return self._answer({"transfer": "basic", "objects": objects})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                return self._answer(self._write_commit(root / found[1], body))
            return self._missing()

        def do_PUT(self):
            (root / "lfs").mkdir(exist_ok=True)
            (root / "lfs" / self.path.rsplit("/", 1)[1]).write_bytes(self._body())
            self._answer()

        def _endpoint(self) -> str:
            return f"http://{self.headers['Host']}"

        def _lfs(self, oid: str) -> str:
            return f"{self._endpoint()}/lfs/{oid}"

        def _write_commit(self, repo: Path, body: bytes) -> dict:
            sha, before = hashlib.sha1(body).hexdigest(), _commit(repo, "main")
            folder = repo / sha
            if before:
                shutil.copytree(before, folder, dirs_exist_ok=True)
            for line in filter(None, body.split(b"\n")):
                entry = json.loads(line)
                if entry["key"] == "file":
                    self._put(folder / entry["value"]["path"], base64.b64decode(entry["value"]["content"]))
                elif entry["key"] == "lfsFile":
                    self._put(folder / entry["value"]["path"], (root / "lfs" / entry["value"]["oid"]).read_bytes())
            folder.mkdir(parents=True, exist_ok=True)
            (repo / "main").write_text(sha)
            return {"commitUrl": f"{self._endpoint()}/{repo.parent.name}/{repo.name}/commit/{sha}", "commitOid": sha,
                    "commitMessage": "", "commitDescription": ""}  # fmt: skip

        def _put(self, path: Path, content: bytes) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return Handler


def _commit(repo: Path, name: str) -> Path | None:
    if name == "main":
        name = (repo / "main").read_text() if (repo / "main").exists() else ""
    return repo / name if name and (repo / name).is_dir() else None


def _files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _describe(path: Path, name: str) -> dict:
    content = path.read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@contextmanager
def hub(root: Path):
    """Serves `root`; yields the endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(Path(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
