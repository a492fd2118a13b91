"""A small Hub on this machine, for what a push and a load ask of one: `with hub(folder) as server: ...`.

Repositories are folders, a commit is a directory of its own, and large files go through the LFS calls. Only the server
is a stand-in; the client is huggingface_hub itself, told of `server.endpoint`. `server.fail(...)` makes it stumble.
"""

import base64
import hashlib
import json
import re
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

LARGE = (".safetensors", ".parquet")
FIRST = "0" * 40  # the commit that every repository is made with


@dataclass
class Failure:
    """The next `times` requests whose "METHOD /path" matches `where` get `how`: a status; "drop", half of an answer,
    or none; or "lose", the work done and its answer lost."""

    where: str
    how: int | str
    times: int


@dataclass
class Hub:
    """What a test sees of the server."""

    root: Path
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def fail(self, where: str, how: int | str, times: int = 1) -> None:
        self.failures.append(Failure(where, how, times))

    def failure(self, request: str) -> int | str | None:
        for failure in self.failures:
            if failure.times and re.search(failure.where, request):
                failure.times -= 1
                return failure.how
        return None

    def commits(self, repo: str, kind: str = "models") -> list[str]:
        """All commits of a repository, the newest last; none where it was never made."""
        log = self.root / kind / repo / "log"
        return log.read_text().split() if log.exists() else []

    def files(self, repo: str, kind: str = "models", at: str = "main") -> list[str]:
        folder = _commit(self.root / kind / repo, at)
        return sorted(_files(folder)) if folder else []


_REPO = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"


def _handler(server: Hub):
    root = server.root

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _answer(self, content=b"", status=200, headers=None):
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            if self.failing in ("drop", "lose"):
                return self._break_off(content if self.failing == "drop" else b"")
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _break_off(self, content):
            """Half of an answer and the end of the connection."""
            if content and self.command == "GET":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
                self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True

        def _missing(self, code="EntryNotFound"):
            self._answer({"error": "not found"}, 404, {"X-Error-Code": code})

        def _body(self) -> bytes | None:
            """None where the connection ended before the body did."""
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline() or b"-1", 16):
                    if size < 0:
                        return None
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            return body if len(body) == length else None

        def _serve(self, work):
            """Keeps what is asked, stumbles where a test says so, and does the `work` otherwise."""
            body, request = self._body(), f"{self.command} {self.path}"
            if body is None:
                self.close_connection = True  # whoever asked is gone
                return None
            server.asked.append(request)
            self.failing = server.failure(request)
            if isinstance(self.failing, int):
                code = {"X-Error-Code": "RepoNotFound"} if self.failing == 404 else {}
                return self._answer({"error": f"told to answer {self.failing}"}, self.failing, code)
            if self.failing == "drop" and self.command != "GET":
                self.close_connection = True  # nothing was done, nothing is said
                return None
            return work(unquote(self.path.split("?")[0]), body)

        def do_GET(self):
            self._serve(self._get)

        do_HEAD = do_GET

        def do_POST(self):
            self._serve(self._post)

        def do_PUT(self):
            self._serve(self._put_large)

        def _get(self, path, _):
            file = r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<at>[^/]+)/(?P<file>.+)"
            if found := re.fullmatch(file, path):
                kind = "datasets" if found["kind"] else "models"
                return self._file(root / kind / found["repo"], found["at"], found["file"])
            if found := re.fullmatch(rf"{_REPO}/tree/(?P<at>[^/]+)/?(?P<under>.*)", path):
                folder = _commit(root / found["kind"] / found["repo"], found["at"])
                return self._tree(folder, found["under"]) if folder else self._missing("RevisionNotFound")
            if found := re.fullmatch(rf"{_REPO}(/revision/(?P<at>.+))?", path):
                repo = root / found["kind"] / found["repo"]
                folder = _commit(repo, found["at"] or "main")
                if folder is None:
                    return self._missing("RevisionNotFound" if repo.exists() else "RepoNotFound")
                siblings = [{"rfilename": name} for name in sorted(_files(folder))]
                about = {"id": found["repo"], "sha": folder.name, "siblings": siblings, "tags": [], "downloads": 0}
                return self._answer(about | {"private": (repo / "private").exists(), "likes": 0, "disabled": False})
            return self._missing()

        def _tree(self, folder, under):
            names = [name for name in sorted(_files(folder)) if name.startswith(under)]
            if "recursive=" not in self.path.lower() or "recursive=false" in self.path.lower():
                inside = {name[len(under) :].strip("/").partition("/")[0] for name in names}
                paths = [f"{under}/{name}".strip("/") for name in sorted(inside)]
                return self._answer([_describe(folder / name, name) for name in paths])
            return self._answer([_describe(folder / name, name) for name in names])

        def _file(self, repo, at, file):
            folder = _commit(repo, at)
            if folder is None or not (folder / file).is_file():
                return self._missing()
            content = (folder / file).read_bytes()
            mark = f'"{_oid(folder / file)}"'
            headers = {"X-Repo-Commit": folder.name, "ETag": mark, "X-Linked-Etag": mark}
            headers |= {"X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
            if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(part[1]), int(part[2] or len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                return self._answer(content[first : last + 1], 206, headers)
            return self._answer(content, 200, headers)

        def _post(self, path, body):
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return self._answer({"errors": [], "warnings": []})
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {"oid": item["oid"], "size": item["size"]} | self._to_send(item["oid"])
                    for item in json.loads(body)["objects"]
                ]
                return self._answer({"transfer": "basic", "objects": objects})
            found = re.fullmatch(rf"{_REPO}/(?P<what>preupload|commit|branch|paths-info)/(?P<at>.+)", path)
            if not found:
                return self._missing()
            repo = root / found["kind"] / found["repo"]
            if _commit(repo, "main") is None:
                return self._missing("RepoNotFound")
            what = {"preupload": self._modes, "commit": self._write_commit}
            what |= {"branch": self._branch, "paths-info": self._paths}
            return what[found["what"]](repo, found["at"], body)

        def _create(self, asked):
            kind = f"{asked.get('type') or 'model'}s"
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            repo, url = root / kind / name, f"{server.endpoint}/{'datasets/' * (kind == 'datasets')}{name}"
            if repo.exists():
                return self._answer({"error": "You already created this repo", "url": url}, 409)
            self._put(repo / FIRST / ".gitattributes", b"*.safetensors filter=lfs\n")
            if asked.get("visibility") == "private" or asked.get("private"):
                self._put(repo / "private", b"")
            _set_head(repo, "main", FIRST)
            return self._answer({"url": url, "id": name})

        def _modes(self, repo, at, body):
            folder = _commit(repo, at)
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                 "shouldIgnore": False, "oid": _oid(folder / file["path"])}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self._answer({"files": modes})

        def _branch(self, repo, name, body):
            if _commit(repo, name) is not None:
                return self._answer({"error": "exists"}, 409)
            _set_head(repo, name, _commit(repo, "main").name)
            return self._answer({})

        def _paths(self, repo, at, body):
            folder = _commit(repo, at)
            asked = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]*)", body.decode())
            names = [unquote(name) for name in asked]
            return self._answer([_describe(folder / name, name) for name in names if (folder / name).exists()])

        def _put_large(self, path, body):
            self._put(root / "lfs" / path.rsplit("/", 1)[1], body)
            self._answer()

        def _to_send(self, oid: str) -> dict:
            is_there = (root / "lfs" / oid).exists()
            return {} if is_there else {"actions": {"upload": {"href": f"{server.endpoint}/lfs/{oid}"}}}

        def _write_commit(self, repo, at, body):
            before, lines = _commit(repo, at), [json.loads(line) for line in body.split(b"\n") if line]
            if lines[0]["value"].get("parentCommit", before.name) != before.name:
                return self._answer({"error": "the branch has moved"}, 412)
            sha = hashlib.sha1(before.name.encode() + body).hexdigest()
            folder = repo / sha
            shutil.copytree(before, folder, dirs_exist_ok=True)
            for entry in lines:
                value = entry["value"]
                if entry["key"] == "file":
                    self._put(folder / value["path"], base64.b64decode(value["content"]))
                elif entry["key"] == "lfsFile":
                    self._put(folder / value["path"], (root / "lfs" / value["oid"]).read_bytes())
                elif entry["key"] == "deletedFile":
                    (folder / value["path"]).unlink()
            _set_head(repo, at, sha)
            return self._answer({"commitUrl": f"{server.endpoint}/{repo.parent.name}/{repo.name}/commit/{sha}",
                                 "commitOid": sha, "commitMessage": "", "commitDescription": ""})  # fmt: skip

        def _put(self, path: Path, content: bytes) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return Handler


def _set_head(repo: Path, branch: str, sha: str) -> None:
    (repo / "heads").mkdir(parents=True, exist_ok=True)
    (repo / "heads" / branch).write_text(sha)
    with open(repo / "log", "a") as log:
        log.write(f"{sha}\n")


def _commit(repo: Path, name: str) -> Path | None:
    head = repo / "heads" / name
    sha = head.read_text() if head.is_file() else name
    return repo / sha if re.fullmatch(r"[0-9a-f]{40}", sha) and (repo / sha).is_dir() else None


def _files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _oid(path: Path) -> str | None:
    """How git, or for large files LFS, names a content."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if path.name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _describe(path: Path, name: str) -> dict:
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    about = {"type": "file", "path": name, "size": path.stat().st_size}
    if name.endswith(LARGE):
        about["lfs"] = {"oid": _oid(path), "size": about["size"], "pointerSize": 130}
    return about | {"oid": hashlib.sha1(name.encode() + path.read_bytes()).hexdigest()}


@contextmanager
def hub(root: Path):
    """Serves `root`; yields a [`Hub`]."""
    about = Hub(Path(root))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(about))
    server.daemon_threads = True
    about.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield about
    finally:
        server.shutdown()
        server.server_close()
