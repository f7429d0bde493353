"""A hub on the loopback address, as far as huggingface_hub asks one: metadata, files by redirect and range, uploads."""

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = 1000  # bytes from which a file is kept in large-file storage, behind a redirect to another host
PIECE = 1 << 16
KINDS = {"": "model", "spaces/": "space", "datasets/": "dataset"}


@dataclass
class Repo:
    files: dict[str, bytes | Path]
    commit: str = "a" * 40
    private: bool = False
    gated: bool = False
    branches: set[str] = field(default_factory=lambda: {"main", "v1"})  # all at the one commit
    readers: set[str] = field(default_factory=set)  # tokens that a private or gated repository lets in


@dataclass
class Trouble:
    """What goes wrong. Each `times` is how often it still does."""

    status: int | None = None  # instead of answering
    times: int = 10**9
    cuts: list[int] = field(default_factory=list)  # close the connection of the next downloads after so many bytes
    seconds_a_piece: float = 0.0  # slow: pause after each piece
    changed: bool = False  # large files arrive altered
    no_hub: bool = False  # answers are those of some other web server
    no_ranges: bool = False
    lacks: str = ""  # a header that small files come without


class StandInHub:
    """`repos` by "owner/name" or "spaces/owner/name"; `seen` counts requests; `leaks` are tokens sent elsewhere.

    `asked`: revision and name of each file; `agents`: the programs that ask; `commits`: branches and messages.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.trouble = Trouble()
        self.seen: Counter[str] = Counter()
        self.ranges: list[str] = []  # Range headers of downloads
        self.sent = 0  # bytes of large files
        self.leaks: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.agents: set[str] = set()
        self.commits: list[tuple[str, str]] = []
        self.tokens = {"good": "someone"}
        self.stored: dict[str, bytes] = {}  # large files uploaded
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.elsewhere = f"http://localhost:{self.port}"  # another host, to the client
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, repo: str, files: dict[str, bytes | Path], **settings) -> Repo:
        self.repos[repo] = Repo(files, **settings)
        return self.repos[repo]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def content_size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


_digests: dict[tuple[str, int], str] = {}


def sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    key = (str(content), content.stat().st_mtime_ns)
    if key not in _digests:
        with content.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


class Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        host = self.headers.get("Host", "").partition(":")[0]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not path.startswith("/api/agent"):  # huggingface_hub's own curiosity
            self.hub.seen[self.command] += 1
            self.hub.agents.add(self.headers.get("User-Agent", ""))
        trouble = self.hub.trouble
        try:
            if trouble.status and trouble.times > 0:
                trouble.times -= 1
                self.reply(trouble.status, {"error": "in trouble"})
            elif host == "localhost":
                self.elsewhere(path)
            elif path.startswith("/api/"):
                self.api(path.removeprefix("/api/"))
            elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
                self.batch(match[1])
            elif match := re.fullmatch(r"/((?:spaces/|datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.resolve(*match.groups())
            else:
                self.reply(404)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # files

    def resolve(self, name: str, revision: str, filename: str) -> None:
        self.hub.asked.append((revision, filename))
        repo = self.allowed(name)
        if repo is None:
            return
        if revision not in (*repo.branches, repo.commit):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        content = repo.files.get(filename)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repo.commit})
        if self.hub.trouble.no_hub:
            return self.reply(200, b"<html>welcome to the hotel's network</html>")
        size, digest = content_size(content), sha256(content)
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if size < LARGE:
            headers["ETag"] = f'"{digest[:40]}"'
            headers.pop(self.hub.trouble.lacks, None)
            return self.send_content(content, headers)
        headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{digest}"', "ETag": '"of-the-redirect"'}
        location = f"{self.hub.elsewhere}/{name}/{filename}?signed=yes"
        self.reply(302, b"Found. Redirecting", {**headers, "Location": location})

    def elsewhere(self, path: str) -> None:
        """Large-file storage: of downloads by redirect, and of uploads."""
        if self.headers.get("Authorization"):
            self.hub.leaks.append(path)
        if self.command == "PUT":
            self.hub.stored[path.rpartition("/")[2]] = self.body
            return self.reply(200)
        name, _, filename = path[1:].rpartition("/")
        while name not in self.hub.repos:
            name, _, folder = name.rpartition("/")
            filename = f"{folder}/{filename}"
        self.send_content(self.hub.repos[name].files[filename], {"Accept-Ranges": "bytes"})

    def send_content(self, content: bytes | Path, headers: dict[str, str]) -> None:
        size, start, trouble = content_size(content), 0, self.hub.trouble
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            self.hub.ranges.append(asked[0])
        if asked and not trouble.no_ranges:
            start = int(asked[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        for key, value in {**headers, "Content-Length": str(size - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = trouble.cuts.pop(0) if trouble.cuts and size >= LARGE else size
        for piece in pieces(content, start):
            piece = piece[:left]
            if trouble.changed and size >= LARGE:
                piece = bytes(256 - b if b else 1 for b in piece[:1]) + piece[1:]
            self.wfile.write(piece)
            self.hub.sent += len(piece)
            left -= len(piece)
            if not left and len(piece) < size - start:
                self.close_connection = True
                return
            if trouble.seconds_a_piece:
                time.sleep(trouble.seconds_a_piece)

    # the API

    def api(self, path: str) -> None:
        kind, _, rest = path.partition("/")
        prefix = {"models": "", "spaces": "spaces/", "datasets": "datasets/"}.get(kind)
        if path == "repos/create":
            return self.create()
        if path == "validate-yaml":
            header = yaml.safe_load(json.loads(self.body)["content"].split("---")[1])
            errors = [] if isinstance(header, dict) else [{"message": "no header"}]
            return self.reply(200, {"errors": errors, "warnings": []})
        if path == "whoami-v2":
            user = self.hub.tokens.get(self.token() or "")
            return self.reply(200, {"name": user, "type": "user"}) if user else self.refuse(401, "", "Invalid token")
        match = re.fullmatch(r"([^/]+/[^/]+)(?:/(tree|revision|preupload|commit|branch)/([^/]+))?(?:/.*)?", rest)
        if prefix is None or not match:
            return self.reply(404)
        repo = self.allowed(prefix + match[1])
        if repo is None:
            return
        if match[2] in ("tree", "revision") and match[3] not in (*repo.branches, repo.commit):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        if match[2] == "tree":
            entries = [{"type": "file", "path": name, "size": content_size(content), "oid": "b" * 40}
                       for name, content in repo.files.items()]  # fmt: skip
            return self.reply(200, entries)
        if match[2] == "branch":
            if match[3] in repo.branches:
                return self.reply(409, {"error": "Reference already exists"})
            repo.branches.add(match[3])
            return self.reply(200, {})
        if match[2] == "preupload":
            return self.preupload()
        if match[2] == "commit":
            return self.commit(repo, prefix + match[1], match[3])
        siblings = [{"rfilename": name} for name in repo.files]
        self.reply(200, {"id": match[1], "sha": repo.commit, "siblings": siblings, "private": repo.private})

    def create(self) -> None:
        if self.token() not in self.hub.tokens:
            return self.refuse(401, "", "Invalid username or password.")
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.hub.tokens[self.token()]}/{asked['name']}"
        if name.partition("/")[0] != self.hub.tokens[self.token()]:
            return self.refuse(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.hub.repos:
            return self.reply(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        self.hub.add(
            name, {}, private=asked.get("private") or asked.get("visibility") == "private", readers={self.token() or ""}
        )
        self.reply(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def preupload(self) -> None:
        files = [{"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                  "shouldIgnore": False, "oid": None} for file in json.loads(self.body)["files"]]  # fmt: skip
        self.reply(200, {"files": files})

    def batch(self, name: str) -> None:
        if self.allowed(name) is None:
            return
        objects = [{"oid": one["oid"], "size": one["size"], "authenticated": True,
                    "actions": {"upload": {"href": f"{self.hub.elsewhere}/upload/{one['oid']}"}}}
                   for one in json.loads(self.body)["objects"]]  # fmt: skip
        self.reply(200, {"transfer": "basic", "objects": objects})

    def commit(self, repo: Repo, name: str, branch: str) -> None:
        if self.token() not in self.hub.tokens:
            return self.refuse(401, "", "Invalid username or password.")
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.commits.append((branch, value["summary"]))
            if entry["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.stored[value["oid"]]
        repo.commit = hashlib.sha1(self.body).hexdigest()
        revision = parse_qs(urlsplit(self.path).query)
        self.reply(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{repo.commit}", "commitOid": repo.commit,
                         "pullRequestUrl": f"{self.hub.url}/{name}/discussions/1" if "create_pr" in revision else None,
                         "hookOutput": "", "success": True})  # fmt: skip

    # who may read, and answers

    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def allowed(self, name: str) -> Repo | None:
        """The repository, if the request may read it; otherwise it has been refused as the real hub does."""
        repo, token = self.hub.repos.get(name), self.token()
        if token is not None and token not in self.hub.tokens:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and token not in repo.readers):
            known = token is not None
            self.refuse(404 if known else 401, "RepoNotFound", "Repository not found" if known else
                        "Invalid username or password.")  # fmt: skip
        elif repo.gated and token not in repo.readers:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            self.refuse(403 if token else 401, "GatedRepo", message)
        else:
            return repo
        return None

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        extra = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.reply(status, {"error": message}, extra)

    def reply(self, status: int, content: object = b"", headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "text/html" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def pieces(content: bytes | Path, start: int):
    if isinstance(content, bytes):
        yield from (content[i : i + PIECE] for i in range(start, len(content), PIECE))
        return
    with content.open("rb") as file:
        file.seek(start)
        while piece := file.read(PIECE):
            yield piece
