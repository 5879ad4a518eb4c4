"""Ctrl-C as a terminal sends it: to the whole group of processes in its foreground, and not by a kill."""

from __future__ import annotations

import os
import pty
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.end_to_end.instance import World, eventually, is_alive
from tests.integration.supervisor.lease_driver import rows

DRAIN_SECONDS = 10
"""Long enough to look at the processes meanwhile."""

# Becomes the command, with the terminal as its own: as what a shell starts there.
AT_CONTROLLING_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
os.dup2(terminal, 0)
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def a_terminal() -> Iterator[tuple[int, str]]:
    """The end at which a person sits, and the path of the other one."""
    persons, processes = pty.openpty()
    try:
        yield persons, os.ttyname(processes)
    finally:
        os.close(persons)
        os.close(processes)


async def test_b20_a_ctrl_c_reaches_neither_the_worker_nor_what_the_bot_started(world: World) -> None:
    """Both live until the drain is over: only the worker itself can put the update back into the queue."""
    with a_terminal() as (persons, path):
        variables = {
            "BOT_APP": "tests.end_to_end.bots:with_child",
            "DRAIN_SECONDS": str(DRAIN_SECONDS),
        }
        one = world.instance("one", world.port, variables)
        one.command = (sys.executable, "-c", AT_CONTROLLING_TERMINAL, path, *one.command)
        await one.start()
        await one.wait_until_owner()
        worker = await one.worker_pid()
        child = int(re.findall(r"child=(\d+)", await world.say(7, "spawn 120"))[0])
        os.write(persons, b"\x03")
        await one.wait_for("[LOCK_CONTROLLER] stopping: asked by a signal")
        assert is_alive(worker)
        assert is_alive(child)
        assert await one.wait_for_exit() == 0
    found = await rows(world.database_url, "SELECT state, attempts FROM webhook_supervisor.inbox")
    assert found == [("pending", 0)]
    assert [line.fields["status"] for line in one.lines if line.event == "worker ended"] == ["exit status 0"]
    assert not one.has("[WORKER] killing the worker")

    async def child_is_gone() -> bool:
        return not is_alive(child)

    await eventually(child_is_gone, "the end of the bot's child")
