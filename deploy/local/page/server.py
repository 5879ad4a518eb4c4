"""The page over HTTP: FastAPI on uvicorn, on 127.0.0.1, in the process of `make run`.

Its buttons kill processes, and every page that the user has open elsewhere can send requests here. So:

- a request whose Host is not our own address is refused: the name of another site that was made to lead here (DNS
  rebinding) is still in it;
- a request with the Origin of another page, and a POST without any, is refused (CSRF): browsers always send it with a POST;
- no other page may show ours in a frame, and ours loads nothing: its style and script are allowed by their hashes.

Not promised: protection from other users of this machine, who can connect and write any header.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import uvicorn
from fastapi import Body, FastAPI, Request, Response

from deploy.local.emulator.errors import ControlError
from deploy.local.errors import InstanceFailed
from deploy.local.evidence import InboxReader
from deploy.local.page.desk import Blow, Desk
from deploy.local.page.view import Memory, Watch
from deploy.local.ports import LOOPBACK
from deploy.local.system import LocalSystem

DEFAULT_PORT = 8080
_PAGE = Path(__file__).with_name("page.html")
# More would only be slow: every instance is two processes.
_MOST_INSTANCES = 4
# Telegram's own limit on a message.
_LONGEST_TEXT = 4096


def listen(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1.

    Raises:
        OSError: the port is taken, or not for us.
    """
    return socket.create_server((LOOPBACK, port))


def address_of(listener: socket.socket) -> str:
    """Where the page is."""
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}"


async def serve_page(system: LocalSystem, memory: Memory, listener: socket.socket) -> None:
    """Serves the page of a system until it is cancelled; takes the socket over."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(listener)
        inbox = await InboxReader.open(system.dsn)
        stack.push_async_callback(inbox.close)
        web = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        watch = Watch(system, memory, inbox, web)
        app = make_app(watch, Desk(system, watch), listener.getsockname()[1])
        server = _Server(
            uvicorn.Config(
                app, ws="none", lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
            )
        )
        serving = asyncio.create_task(server.serve([listener]), name="web page")
        try:
            await asyncio.shield(serving)
        finally:
            # What is being answered uses what the stack is about to close.
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Installs nothing: the signals of `make run` are its own."""
        yield


def make_app(watch: Watch, desk: Desk, port: int) -> FastAPI:
    """The application.

    Args:
        watch: to look at the system.
        desk: to act on it.
        port: on which it is served: part of the only Host and Origin that are let in.
    """
    page = _PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": content_policy(page), "X-Content-Type-Options": "nosniff"}
    headers |= {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    names = (LOOPBACK, "localhost")
    hosts = {f"{name}:{port}" for name in names}
    if port == 80:  # which browsers leave out
        hosts.update(names)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        is_ours = origin == f"http://{host}" or (origin is None and request.method in ("GET", "HEAD"))
        if host not in hosts or not is_ours:
            return _explain(403, "only the page itself, at its own address, may ask this")
        response = await go_on(request)
        response.headers.update(headers)
        return response

    @app.exception_handler(InstanceFailed)
    @app.exception_handler(ControlError)
    async def not_now(_request: Request, error: Exception) -> Response:
        return _explain(409, str(error))

    @app.exception_handler(httpx.HTTPError)
    async def emulator_gone(_request: Request, _error: Exception) -> Response:
        return _explain(503, "the Bot API emulator does not answer")

    @app.get("/")
    async def show_page() -> Response:
        return Response(page, media_type="text/html")

    @app.get("/favicon.ico")
    async def show_no_icon() -> Response:
        return Response(status_code=204)

    @app.get("/api/state")
    async def look() -> Response:
        return Response(msgspec.json.encode(await watch.look()), media_type="application/json")

    @app.post("/api/deploy")
    async def deploy() -> dict[str, int]:
        return {"deploy": desk.deploy()}

    @app.post("/api/rollback")
    async def roll_back() -> dict[str, int]:
        return {"deploy": desk.rollback()}

    @app.post("/api/rotate")
    async def rotate() -> dict[str, int]:
        return {"deploy": desk.rotate()}

    @app.post("/api/scale", status_code=204)
    async def scale(count: Annotated[int, Body(embed=True, ge=1, le=_MOST_INSTANCES)]) -> None:
        desk.scale(count)

    @app.post("/api/away", status_code=204)
    async def set_away(is_away: Annotated[bool, Body(embed=True)]) -> None:
        await desk.set_away(is_away)

    @app.post("/api/say", status_code=204)
    async def say(text: Annotated[str, Body(embed=True, min_length=1, max_length=_LONGEST_TEXT)]) -> None:
        await desk.say(text)

    @app.post("/api/press", status_code=204)
    async def press(message_id: Annotated[int, Body()], data: Annotated[str, Body()]) -> None:
        await desk.press(message_id, data)

    @app.post("/api/instances/{name}/{blow}", status_code=204)
    async def strike(name: str, blow: Blow) -> None:
        await desk.strike(name, blow)

    return app


def content_policy(page: str) -> str:
    """What the page may load and run: itself, by the hashes of its one style and one script."""
    hashes = {
        tag: base64.b64encode(
            hashlib.sha256(re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[0].encode()).digest()
        ).decode()
        for tag in ("style", "script")
    }
    return (
        f"default-src 'self'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )


def _explain(status: int, message: str) -> Response:
    return Response(msgspec.json.encode({"error": message}), status, media_type="application/json")
