"""The platform's health probes: a TCP connection, and one GET.

Each opens a connection of its own, as the platforms' probes do: an instance that accepts nobody must fail
them.
"""

import asyncio

import h11

from deploy.local.ports import LOOPBACK


async def passes_tcp(port: int, *, limit_seconds: float) -> bool:
    """Whether a connection is accepted in time."""
    try:
        async with asyncio.timeout(limit_seconds):
            _, writer = await asyncio.open_connection(LOOPBACK, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def passes_http(port: int, path: str, *, limit_seconds: float) -> bool:
    """Whether a GET is answered with 2xx or 3xx in time (Render, "Health checks")."""
    try:
        async with asyncio.timeout(limit_seconds):
            status = await _status(port, path)
    except (OSError, TimeoutError, h11.RemoteProtocolError):
        return False
    return 200 <= status < 400


async def _status(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        protocol = h11.Connection(h11.CLIENT)
        head = h11.Request(
            method="GET",
            target=path,
            headers=[
                ("host", f"{LOOPBACK}:{port}"),
                ("user-agent", "platform-probe"),
                ("connection", "close"),
            ],
        )
        writer.write((protocol.send(head) or b"") + (protocol.send(h11.EndOfMessage()) or b""))
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                protocol.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                return event.status_code
            elif not isinstance(event, h11.InformationalResponse):
                raise ConnectionError("closed without an answer")
    finally:
        writer.transport.abort()
