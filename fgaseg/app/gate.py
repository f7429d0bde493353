"""What reaches Gradio: the page, its own files and its queue. Everything else that Gradio serves is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Not among them: files of this machine (file=, upload), addresses fetched for the browser (proxy=, file=http...), other
# programs' way in (call, api, info; run, but for the threshold, which does not wait in the queue), monitoring,
# recordings, run history, component servers.
ALLOWED = (
    ("GET", r"/photos/[\w-]+/[\w.]+|/"),
    ("POST", r"/photos"),
    ("GET", r"/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"),
    ("GET", r"/(assets|static|svelte)/[\w./@+-]+"),
    ("GET", r"/gradio_api/(queue/data|startup-events|app_id|heartbeat/\w+)"),
    ("POST", r"/gradio_api/(queue/join|run/predict|cancel|reset)/?"),
)
MOST_ASKED = 200_000  # bytes of a question, which is text
HEADERS = {
    # nothing from other hosts, whatever a page of Gradio's or a name might ask for; Gradio's own page needs inline
    # scripts, and compiles the one of an HTML component
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
KEPT = re.compile(r"/(assets|static|svelte)/")  # files of Gradio's: the browser may keep them


class Gate:
    """ASGI middleware in front of the page."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http" or not allowed(scope["method"], path := _path(scope)):
            await _refuse(scope, send, 404, "not found")
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = {"cache-control"} if KEPT.match(path) else set()
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k not in kept]
                replaced = {name for name, _ in own}
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() not in replaced] + own
            await send(message)

        if scope["method"] == "POST" and path.startswith("/gradio_api/"):
            body = await _read(receive)
            if body is None or not is_plain(body):
                await _refuse(scope, send, 400, "not a question of this page")
                return
            receive = _again(body, receive)
        await self.app(scope, receive, answer)


def allowed(method: str, path: str) -> bool:
    """Whether a path, decoded, is one that the page needs; ".." is in none of them."""
    method = "GET" if method == "HEAD" else method
    return ".." not in path and any(method == one and re.fullmatch(pattern, path) for one, pattern in ALLOWED)


def is_plain(body: bytes) -> bool:
    """Whether all that is asked with is text, numbers and choices.

    Gradio takes an object with a path or an address, for any component, as a file that it reads or fetches.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return False
    data = asked.get("data", []) if isinstance(asked, dict) else None
    plain = str | int | float | bool | None
    return isinstance(data, list) and all(isinstance(value, plain) for value in data)


def _path(scope: Message) -> str:
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


async def _read(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too long or breaks off."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > MOST_ASKED:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and then what comes after it."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _refuse(scope: Message, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    headers = [(b"content-type", b"text/plain"), *((k.encode(), v.encode()) for k, v in HEADERS.items())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})
