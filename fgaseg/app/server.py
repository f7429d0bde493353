"""The server of the page: photos and results under keys, and Gradio's page behind the gate."""

import asyncio
import contextlib
import gzip
import io
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from ..errors import FGASegError, UsageError
from .gate import Gate
from .labelling import MOST_UPLOAD, Labeller, describe, in_words, too_large

UPLOADS = 8  # photos that come at once, each up to MOST_UPLOAD bytes in memory
UPLOAD_SECONDS = 300
WORKERS = 2  # photos that are decoded, and pictures and files that are made, at once


def build_app(labeller: Labeller, root_path: str = "") -> Any:
    """The page as an ASGI application. Raises UsageError if Gradio is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"  # read when Gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio as gr
        from fastapi import FastAPI
        from starlette.middleware.cors import CORSMiddleware
    except ImportError as error:
        raise UsageError(f"the page needs Gradio ({error}): pip install 'fgaseg[app]'") from None
    from .page import build_page, look

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(CORSMiddleware, allow_origins=[])  # in place of Gradio's own: no other site may read
    _add_photos(app, labeller)
    gr.mount_gradio_app(
        app,
        build_page(labeller),
        path="/",
        root_path=root_path or None,
        allowed_paths=[],
        blocked_paths=["/"],
        max_file_size=1,  # of Gradio's own upload, which the gate closes
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        **look(),
    )
    return Gate(app)


def _add_photos(app: Any, labeller: Labeller) -> None:
    """The routes of photos: an upload, and what is shown and saved of each."""
    from fastapi import Request  # seen by FastAPI, which reads the annotations below
    from fastapi.responses import JSONResponse, Response

    coming, making = asyncio.Semaphore(UPLOADS), threading.Semaphore(WORKERS)

    def guarded(make: Callable[[], Response]) -> Response:
        try:
            with making:
                return make()
        except Exception as error:  # nothing that somebody sends may stop the page
            return JSONResponse({"error": in_words(error)}, 404 if isinstance(error, FGASegError) else 500)

    @app.post("/photos")
    async def add(request: Request, name: str = "photo") -> Response:
        if request.headers.get("content-type") != "application/octet-stream":
            return JSONResponse({"error": "send the bytes of a photo as application/octet-stream"}, 415)
        async with coming:
            try:
                content = await asyncio.wait_for(_content(request), UPLOAD_SECONDS)
            except TimeoutError:
                return JSONResponse({"error": f"{name[:100]}: did not come within {UPLOAD_SECONDS} seconds"}, 408)
            if content is None:
                return JSONResponse({"error": str(too_large(name[:100]))}, 413)
            return await asyncio.to_thread(guarded, lambda: JSONResponse(describe(labeller.add(content, name))))

    @app.get("/photos/{key}/photo.jpg")
    def picture(key: str) -> Response:
        def make() -> Response:
            photo = labeller.photos.get(key)
            return _image(photo.image.resize(photo.shown[::-1]), "JPEG", quality=92)

        return guarded(make)

    @app.get("/photos/{key}/labels")
    def labels(key: str) -> Response:
        def make() -> Response:
            return Response(gzip.compress(labeller.pack(key), 3), media_type="application/octet-stream",
                            headers={"Content-Encoding": "gzip"})  # fmt: skip

        return guarded(make)

    @app.get("/photos/{key}/map")
    def map(key: str, kind: str, index: int) -> Response:
        return guarded(lambda: _image(labeller.draw_map(key, kind, index), "PNG"))

    @app.get("/photos/{key}/mask.png")
    def mask(key: str) -> Response:
        return guarded(lambda: Response(labeller.save(key, ".png"), media_type="image/png"))

    @app.get("/photos/{key}/coco.json")
    def coco(key: str) -> Response:
        return guarded(lambda: Response(labeller.save(key, ".json"), media_type="application/json"))


async def _content(request: Any) -> bytes | None:
    """The body of a request, b"" if it breaks off; None if it is larger than a photo may be."""
    from starlette.requests import ClientDisconnect

    content = bytearray()
    with contextlib.suppress(ClientDisconnect):
        async for chunk in request.stream():
            content += chunk
            if len(content) > MOST_UPLOAD:
                return None
        return bytes(content)
    return b""


def _image(image: Any, form: str, **options: Any) -> Any:
    from fastapi.responses import Response

    file = io.BytesIO()
    image.save(file, form, **options)
    return Response(file.getvalue(), media_type=f"image/{form.lower()}")


def serve(labeller: Labeller, host: str, port: int, root_path: str = "", ready: Callable[[str], None] = print) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    root_path  the path that a proxy in front of it shows the page under, and strips off; "": there is none
    ready      is called with the address as soon as it can be opened

    Raises UsageError for an address that cannot be had, and if Gradio is not installed.
    """
    app = build_app(labeller, root_path)
    import uvicorn  # which comes with Gradio

    listening = _listen(host, port)
    with listening:
        # uvicorn's own configuration of logs would close the handlers of the whole process, and with absl's, stderr
        config = uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=1,
                                root_path=root_path, server_header=False)  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not host.strip():  # for create_server, all addresses of this machine
            raise socket.gaierror(socket.EAI_NONAME, "it is empty")
        socket.getaddrinfo(host, port, family)  # create_server would tell its errors as its own
        return socket.create_server((host, port), family=family)
    except (socket.gaierror, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--host {host}: is no address ({why}); give the name or number of one of this machine's addresses, such "
            f"as 127.0.0.1, alone: the port goes to --port"
        ) from None
    except (OSError, OverflowError) as error:
        why = str(getattr(error, "strerror", None) or error).partition(" (")[0]  # the rest is what was given
        raise UsageError(f"--host {host} --port {port}: cannot be used ({why}); give another port") from None
