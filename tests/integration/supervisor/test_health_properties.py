"""The supervisor's own HTTP under any bytes: it answers or hangs up, and is there for the next."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.health import Answer, HttpServer

HANG_SECONDS = 60.0

_pieces = st.one_of(
    st.sampled_from(
        [
            *(
                b"GET ",
                b"POST ",
                b"HEAD ",
                b"/healthz",
                b" HTTP/1.1\r\n",
                b" HTTP/1.0\n",
                b"host: x\r\n",
                b"\r\n",
            ),
            *(
                b"content-length: 5\r\n",
                b"content-length: -1\r\n",
                b"transfer-encoding: chunked\r\n",
                b"zz\r\n",
            ),
            *(
                b"upgrade: h2c\r\n",
                b"expect: 100-continue\r\n",
                b"\xff",
                b"\x00",
                b": ",
                b"y" * 70_000,
                b"PRI * ",
            ),
        ]
    ),
    st.binary(max_size=12),
)


async def say(port: int, pieces: list[bytes]) -> bytes:
    """What comes back until the other side hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.writelines(pieces)
        writer.write_eof()
        while chunk := await reader.read(65536):
            received += chunk
    except ConnectionError:
        return received
    finally:
        writer.close()
    return received


@settings(max_examples=150)
@given(st.lists(_pieces, max_size=8))
@example([b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n", b"x" * 300_000])
@example([b"GET / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\r\n"])
@example([b"HEAD /\xff HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_b29_any_bytes_get_one_answer_or_none(pieces: list[bytes]) -> None:
    """No exception of ours, whatever is said; and a probe that comes next is answered."""

    async def play() -> None:
        troubles: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = HttpServer(lambda method, path: Answer(200, b"well"))
            await server.start(listener)
            port = listener.getsockname()[1]
            async with asyncio.timeout(HANG_SECONDS):
                received = await say(port, pieces)
                assert received == b"" or received.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
                assert received[9:12] != b"400" or received.endswith(b"\r\n\r\n")
                assert received.count(b"HTTP/1.1 ") <= 1
                probe = await say(port, [b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"])
                assert probe.endswith(b"\r\n\r\nwell")
            server.stop()
        assert troubles == []

    asyncio.run(play())
