"""What strangers send to a public port, over bare connections, and what they get for it.

Each attack is a connection, or a few, from begin to end, and returns the status of every answer that it got. "cut off" stands
for a connection that was ended without one: an answer that comes first is never passed over.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from tests.integration.worker.worker_process import HANG_SECONDS, PATH, SECRET, update

MIB = 1024 * 1024
CUT_OFF = "cut off"
_LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)
_STATUS_LINE_BYTES = 64
"""Longer than any; what follows it is not kept."""

Attack = Callable[["Target"], Awaitable[list[str]]]


class Connection:
    """One connection; every wait has a limit on a hang."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> bool:
        """Whether it could be sent."""
        try:
            async with asyncio.timeout(HANG_SECONDS):
                for piece in pieces:
                    self._writer.write(piece)
                    await self._writer.drain()
        except ConnectionError:
            return False
        return True

    async def status(self, *, may_have_body: bool = False) -> str:
        """Of the next answer, whose body must be empty unless it is the REST application's."""
        try:
            async with asyncio.timeout(HANG_SECONDS):
                head = await self._reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                assert length is not None, head
                assert may_have_body or int(length[1]) == 0, head
                await self._reader.readexactly(int(length[1]))
        except (ConnectionError, asyncio.IncompleteReadError):
            return CUT_OFF
        return head.split()[1].decode()

    async def end(self) -> str:
        """Waits until the other side ends it; the status of the answer that came before, if one did."""
        came = b""
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while piece := await self._reader.read(65536):
                    came = (came + piece)[:_STATUS_LINE_BYTES]
        except ConnectionError:
            pass
        return came.split()[1].decode() if came.startswith(b"HTTP/1.1 ") else CUT_OFF

    def half_close(self) -> None:
        self._writer.write_eof()

    def reset(self) -> None:
        """Gone without a word: RST."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Target:
    """A public port."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """A connection that is ours to close."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()


def head(
    *fields: str, method: str = "POST", path: str = f"/webhook/{PATH}", secret: str | None = SECRET
) -> bytes:
    """The head of a request; by default Telegram's own."""
    secrets = [f"x-telegram-bot-api-secret-token: {secret}"] if secret is not None else []
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "host: bot.example.com", *secrets, *fields, "", ""]
    ).encode()


def request(body: bytes = b"", *fields: str, **of_head: str | None) -> bytes:
    """Head and body."""
    return head(f"content-length: {len(body)}", *fields, **of_head) + body  # type: ignore[arg-type]


async def _ask(target: Target, requests: Iterable[bytes]) -> list[str]:
    """One after the other on one connection, each when the one before is answered."""
    async with target.connect() as connection:
        statuses = []
        for each in requests:
            await connection.send(each)
            statuses.append(await connection.status())
        return statuses


async def wrong_path(target: Target) -> list[str]:
    """Scanners, and somebody who tries paths of the right form."""
    paths = ("/", "/.env", "/status", "/webhook/short", f"/webhook/{PATH}/", f"/webhook/{'q' * 40}")
    async with target.connect() as connection:
        statuses = []
        for path in paths:
            await connection.send(request(update(1), path=path))
            statuses.append(await connection.status(may_have_body=not path.startswith("/webhook/")))
        return statuses


async def wrong_method(target: Target) -> list[str]:
    """With everything else right."""
    return await _ask(
        target, (request(update(1), method=method) for method in ("GET", "PUT", "DELETE", "PATCH"))
    )


async def wrong_secret(target: Target) -> list[str]:
    """None, one that is none by its form, and one that could be."""
    return await _ask(target, (request(update(1), secret=secret) for secret in (None, "", "short", "w" * 40)))


async def bad_json(target: Target) -> list[str]:
    """By somebody who knows the secret; short and as long as can be."""
    bodies = [
        b"",
        b"not json",
        b"{}",
        b'{"update_id": 1.5}',
        b"[" * MIB,
        b'{"update_id": 5, "a": "' + b'\\"' * (MIB // 2 - 20),
    ]
    return await _ask(target, map(request, bodies))


async def long_body(target: Target) -> list[str]:
    """10 MB, announced: refused before it comes, thrown away as it comes, and the connection is as before."""
    async with target.connect() as connection:
        await connection.send(head(f"content-length: {10 * MIB}"))
        statuses = [await connection.status()]
        await connection.send(*[b"x" * MIB] * 10)
        await connection.send(head(f"content-length: {10 * MIB}", secret="w" * 40), *[b"x" * MIB] * 10)
        statuses.append(await connection.status())
        return statuses


async def long_chunks(target: Target) -> list[str]:
    """10 MB, not announced."""
    async with target.connect() as connection:
        await connection.send(head("transfer-encoding: chunked"))
        await connection.send(*[b"100000\r\n" + b"x" * MIB + b"\r\n"] * 10)
        return [await connection.status()]


async def slow_body(target: Target) -> list[str]:
    """Piece by piece, and the last one never; waits for the time limit, half a minute."""
    async with target.connect() as connection:
        await connection.send(head("content-length: 100"))
        for _ in range(20):
            await connection.send(b" ")
            await asyncio.sleep(0.05)
        return [await connection.end()]


async def header_bomb(target: Target) -> list[str]:
    """Fields without end."""
    async with target.connect() as connection:
        await connection.send(
            b"POST / HTTP/1.1\r\nhost: x\r\n", *[b"x-filler: " + b"y" * 65000 + b"\r\n"] * 1000
        )
        return [await connection.end()]


async def header_without_end(target: Target) -> list[str]:
    """One field of 64 MB."""
    async with target.connect() as connection:
        await connection.send(b"POST / HTTP/1.1\r\nhost: x\r\nx-long: ", *[b"y" * 65536] * 1000)
        return [await connection.end()]


async def trailer_bomb(target: Target) -> list[str]:
    """The same behind the body, where nobody looks; the answer was given before."""
    async with target.connect() as connection:
        await connection.send(head("transfer-encoding: chunked", path="/webhook/short"))
        status = await connection.status()
        await connection.send(b"0\r\n", *[b"x-filler: " + b"y" * 65000 + b"\r\n"] * 1000)
        return [status, await connection.end()]


async def pipelined_garbage(target: Target) -> list[str]:
    """A request that takes a while, and behind it more than anybody who waits for answers would send."""
    async with target.connect() as connection:
        slow = request(update(1), path=f"/webhook/{'q' * 40}", secret="w" * 40)
        await connection.send(slow + b"GET / HTTP/1.1\r\n\r\n" * 50_000)
        return [await connection.end()]


async def no_http(target: Target) -> list[str]:
    """TLS, binary garbage."""
    statuses = []
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", bytes(range(256)) * 16):
        async with target.connect() as connection:
            await connection.send(garbage)
            statuses.append(await connection.end())
    return statuses


async def half_open(target: Target) -> list[str]:
    """Connected and silent; half a request and no more to come; half a request and gone."""
    async with target.connect(), target.connect() as second, target.connect() as third:
        await second.send(head("content-length: 100")[:50])
        second.half_close()
        await third.send(head("content-length: 100") + b"{")
        third.reset()
        return [await second.end()]


ATTACKS: dict[Attack, set[str]] = {
    wrong_path: {"404"},
    wrong_method: {"405"},
    wrong_secret: {"401"},
    bad_json: {"400"},
    long_body: {"413", "401"},
    long_chunks: {"413"},
    slow_body: {"408"},
    header_bomb: {CUT_OFF},
    header_without_end: {CUT_OFF},
    trailer_bomb: {"404", CUT_OFF},
    pipelined_garbage: {CUT_OFF},
    no_http: {"400"},
    half_open: {CUT_OFF},
}
"""Each attack, and the statuses that it gets (INTERFACE.md, "HTTP"), all of them and no others."""
