"""The control socket and the lifeline, over a real socketpair, with a death that only says so."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from shared import wire
from webhook_worker.control import Control

HANG_SECONDS = 30.0


class Pair:
    """A Control, and the supervisor's end of its socket."""

    def __init__(self) -> None:
        self.time = 100.0
        self.dead = threading.Event()
        self.supervisor, self._ours = socket.socketpair()
        self.control = Control(self._ours, now=lambda: self.time, die=self.dead.set)
        self.received: list[wire.ToWorker] = []
        self.arrived = asyncio.Event()

    def deliver(self, message: wire.ToWorker) -> None:
        self.received.append(message)
        self.arrived.set()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while len(self.received) < count:
                self.arrived.clear()
                await self.arrived.wait()

    async def died(self, within_seconds: float = HANG_SECONDS) -> bool:
        return await asyncio.to_thread(self.dead.wait, within_seconds)

    def say(self, *messages: wire.ToWorker) -> None:
        self.supervisor.sendall(b"".join(map(wire.encode, messages)))

    def close(self) -> None:
        self.supervisor.close()
        self.dead.wait(HANG_SECONDS)
        self._ours.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    pair.control.start()
    yield pair
    pair.close()


def lead(deadline: float, term: str = "a") -> wire.Lead:
    return wire.Lead(term=term, deadline=deadline, recover_at=0.0)


async def test_messages_arrive_in_their_order_also_those_before_the_loop(pair: Pair) -> None:
    """While BOT_APP is imported there is no loop to deliver to."""
    first = wire.SetHealth(ok=False, role="PASSIVE", reason="starting")
    pair.say(first, wire.StopAccepting(linger_seconds=1))
    pair.control.attach(pair.deliver)
    pair.say(wire.Exit())
    await pair.wait_for(3)
    assert pair.received == [first, wire.StopAccepting(linger_seconds=1), wire.Exit()]


async def test_another_loop_may_attach_and_gets_what_came_meanwhile(pair: Pair) -> None:
    """The early reception has the socket until the bot is built; no message is lost between the two, or goes to the former."""
    former: list[wire.ToWorker] = []
    has_arrived = threading.Event()

    async def attach_for_a_while() -> None:
        def deliver(message: wire.ToWorker) -> None:
            former.append(message)
            has_arrived.set()

        pair.control.attach(deliver)
        pair.say(wire.StopAccepting(linger_seconds=1))
        while not has_arrived.is_set():
            await asyncio.sleep(0.001)
        pair.control.detach()

    await asyncio.to_thread(asyncio.run, attach_for_a_while())
    pair.say(wire.StopAccepting(linger_seconds=2))
    pair.control.attach(pair.deliver)
    pair.say(wire.Exit())
    await pair.wait_for(2)
    assert former == [wire.StopAccepting(linger_seconds=1)]
    assert pair.received == [wire.StopAccepting(linger_seconds=2), wire.Exit()]


async def test_a_message_in_pieces_is_put_together(pair: Pair) -> None:
    """A stream has no messages."""
    pair.control.attach(pair.deliver)
    for byte in wire.encode(wire.Exit()):
        pair.supervisor.sendall(bytes([byte]))
    await pair.wait_for(1)


async def test_b01_the_end_of_the_supervisor_is_ours(pair: Pair) -> None:
    """At once, without the event loop."""
    pair.supervisor.close()
    assert await pair.died()


async def test_a_line_that_does_not_decode_is_the_end(pair: Pair) -> None:
    """Not of one checkout: nobody knows what we were told."""
    pair.supervisor.sendall(b'{"type":"Nonsense"}\n')
    assert await pair.died()


async def test_x_a_term_that_outlives_its_deadline_is_the_end(pair: Pair) -> None:
    """Whatever the event loop does: this one does nothing at all."""
    pair.say(lead(deadline=200.0))
    assert not await pair.died(0.6)
    pair.time = 200.0
    assert await pair.died()


async def test_x_a_term_that_is_over_has_no_deadline(pair: Pair) -> None:
    """The worker goes on accepting; a late extension revives nothing."""
    pair.control.attach(pair.deliver)
    pair.say(lead(deadline=200.0))
    await pair.wait_for(1)
    pair.control.term_over()
    pair.time = 300.0
    pair.say(wire.Extend(term="a", deadline=250.0))
    await pair.wait_for(2)
    assert not await pair.died(0.6)


async def test_x_only_an_extension_of_the_term_moves_its_deadline(pair: Pair) -> None:
    """And only forward."""
    pair.control.attach(pair.deliver)
    pair.say(
        lead(deadline=200.0),
        wire.Extend(term="a", deadline=300.0),
        wire.Extend(term="a", deadline=150.0),
        wire.Extend(term="b", deadline=900.0),
        lead(deadline=900.0, term="b"),
    )
    await pair.wait_for(5)
    pair.time = 299.0
    assert not await pair.died(0.6)
    pair.time = 300.0
    assert await pair.died()


async def test_a27_a_loop_that_is_blocked_is_told_of_in_a_thread_of_its_own(pair: Pair) -> None:
    """And where that one waits for the log, the deadline is obeyed all the same."""
    told: list[float] = []
    is_told, may_go_on = threading.Event(), threading.Event()

    def tell(seconds: float) -> None:
        told.append(seconds)
        is_told.set()
        may_go_on.wait(HANG_SECONDS)

    async def pass_by(seconds: float, *, beats: bool) -> None:
        # In small steps: a clock that jumps is one of a process that stood still.
        until = pair.time + seconds
        while pair.time < until and not is_told.is_set():
            if beats:
                pair.control.send(wire.Beat(0.0, True, None, None, wire.PoolUse()))
            pair.time += 0.02
            await asyncio.sleep(0.01)

    pair.control.watch(tell)
    pair.say(lead(deadline=200.0))
    await pass_by(6.0, beats=True)
    assert told == []
    await pass_by(80.0, beats=False)
    assert is_told.is_set()
    pair.time = 200.0
    assert await pair.died()
    may_go_on.set()
    assert len(told) == 1


async def test_b15_a_supervisor_that_does_not_read_blocks_nothing_and_misses_only_beats(pair: Pair) -> None:
    """It is frozen; what matters is told when it is back, in order."""
    beat = wire.Beat(0.0, True, None, None, wire.PoolUse())
    for _ in range(20_000):
        pair.control.send(beat)
    important: list[wire.ToSupervisor] = [wire.SuspectRunning(True), wire.TermEnded()]
    for message in important:
        pair.control.send(message)
    pair.supervisor.setblocking(False)
    received = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(HANG_SECONDS):
        while not received.endswith(wire.encode(important[-1])):
            received += await loop.sock_recv(pair.supervisor, 65536)
    messages = [wire.decode_for_supervisor(line) for line in received.splitlines()]
    assert messages[-len(important) :] == important
    assert 100 < len(messages) < 20_000


async def test_telling_a_supervisor_that_is_gone_is_the_end(pair: Pair) -> None:
    """Whichever notices first."""
    pair.supervisor.close()
    pair.control.send(wire.Accepting())
    assert await pair.died()
