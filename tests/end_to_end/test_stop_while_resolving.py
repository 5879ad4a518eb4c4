"""A stop while a thread of the process waits for something that nobody can end."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.instance import World, running_first

# Stands in for a resolver that does not answer: the call blocks in a thread of asyncio's, as the C library's would.
RESOLVER = """
import socket, threading
resolve = socket.getaddrinfo
def getaddrinfo(host, *arguments, **named):
    if host == "silent.invalid":
        threading.Event().wait()
    return resolve(host, *arguments, **named)
socket.getaddrinfo = getaddrinfo
"""


async def test_a12_a_stop_ends_while_the_resolver_does_not_answer(world: World, tmp_path: Path) -> None:
    """asyncio and the interpreter would wait for the thread, and the platform would have to kill."""
    silent = {"DATABASE_URL": "postgresql://bot:secret@silent.invalid/bot"}
    one = await world.start("one", **silent, **running_first(RESOLVER, tmp_path))
    await one.wait_for("[WORKER] worker accepts connections")
    assert await one.stop() == 0
