"""A reverse proxy in front of the page, as nginx would be: one path of the world outside, stripped off."""

import threading

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route


class Proxy:
    """Passes http://127.0.0.1:port/prefix/... on to target/..., and knows nothing else."""

    def __init__(self, target, prefix):
        self.target, self.prefix = target, prefix
        self.client = httpx.AsyncClient(timeout=None)
        methods = ["GET", "POST", "HEAD"]
        app = Starlette(routes=[Route(prefix + "/{path:path}", self.pass_on, methods=methods),
                                Route("/{path:path}", lambda _: PlainTextResponse("not the page", 404))])  # fmt: skip
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    async def pass_on(self, request):
        path = request.path_params["path"]
        address = f"{self.target}/{path}" + (f"?{request.url.query}" if request.url.query else "")
        headers = {key: value for key, value in request.headers.items() if key != "accept-encoding"}
        asked = self.client.build_request(request.method, address, headers=headers, content=await request.body())
        answer = await self.client.send(asked, stream=True)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, dict(answer.headers))

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            pass
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}{self.prefix}/"

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)
