"""The least that an ASGI application on uvicorn can do: read the body, answer 200. uvicorn is set as ours is."""

from __future__ import annotations

from typing import Any

import uvicorn

from bench.peers import settings

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
END = {"type": "http.response.body", "body": b""}


async def read_body(receive: Any) -> bytes:
    """The body of a request."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers anything."""
    await read_body(receive)
    await send(START)
    await send(END)


def serve(application: Any, *, lifespan: str = "off") -> None:
    """Runs until SIGTERM."""
    uvicorn.run(
        application,
        host=settings.HOST,
        port=settings.PORT,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan=lifespan,  # type: ignore[arg-type]
        access_log=False,
        proxy_headers=False,
        log_level="warning",
        timeout_keep_alive=120,
    )


if __name__ == "__main__":
    serve(app)
