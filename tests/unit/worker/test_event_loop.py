"""One look-up of a name at a time."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from webhook_worker.event_loop import Lookups, Loop

LIMIT_SECONDS = 30.0


async def test_b31_who_gives_up_leaves_its_look_up_to_the_next() -> None:
    """However many tries give up while a nameserver does not answer, no more than one look-up of a name is under way."""
    asked: list[str] = []
    answers = asyncio.Event()

    async def ask(name: str) -> str:
        asked.append(name)
        if name == "slow.example":
            await answers.wait()
        return f"the address of {name}"

    lookups = Lookups(ask)
    for _ in range(20):
        given_up = asyncio.create_task(lookups.answer("slow.example"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait({given_up})
        assert given_up.cancelled()
    waiting = asyncio.create_task(lookups.answer("slow.example"))
    assert await lookups.answer("database.example") == "the address of database.example"
    answers.set()
    assert await asyncio.wait_for(waiting, LIMIT_SECONDS) == "the address of slow.example"
    assert asked == ["slow.example", "database.example"]
    await lookups.answer("slow.example")
    assert asked[2:] == ["slow.example"]  # nothing is remembered


async def test_a_look_up_that_fails_fails_for_all_who_wait() -> None:
    """And the next one asks anew; where nobody waits any more nobody hears of it."""

    async def ask(name: str) -> str:
        await asyncio.sleep(0)
        raise socket.gaierror(socket.EAI_AGAIN, name)

    lookups = Lookups(ask)
    waiting = [asyncio.create_task(lookups.answer("a.example")) for _ in range(3)]
    ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), LIMIT_SECONDS)
    assert [type(end) for end in ends] == [socket.gaierror] * 3
    with pytest.raises(socket.gaierror):
        await lookups.answer("a.example")


def test_the_loop_resolves_and_connects_as_uvloop_does() -> None:
    """By its own getaddrinfo, and by connections that name a host."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo("localhost", 80, family=socket.AF_INET, type=socket.SOCK_STREAM)
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("localhost", port, family=socket.AF_INET)
            assert await asyncio.wait_for(reader.read(), LIMIT_SECONDS) == b""
            writer.close()
            await writer.wait_closed()
        return found

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(main())[0][4] == ("127.0.0.1", 80)
