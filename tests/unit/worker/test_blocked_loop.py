"""A handler that does not give the event loop back, while its owner is confirmed, or is not.

Lifeline, term and dispatcher are the real ones, under each loop; the clock passes only where the handler says so.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext

import pytest
import uvloop

from shared import wire
from tests.models.inbox import ModelInbox, Row, Store
from tests.unit.worker.term_world import HANG_SECONDS, World
from webhook_worker.control import Control
from webhook_worker.dispatch import Dispatcher, DispatchSettings
from webhook_worker.lanes import State
from webhook_worker.outcomes import Done, Outcome
from webhook_worker.term import CANCEL_SECONDS, Term

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    # What workers run on: after a block it runs the timers that are due, and only then what has come in.
    "uvloop": uvloop.new_event_loop,
}
BEGIN, DEADLINE = 100.0, 108.0

Script = Callable[["Scene"], Awaitable[None]]


class Scene:
    """An owner's worker with two updates of two chats: the first one's handler runs a script, the second one's waits."""

    def __init__(self, script: Script) -> None:
        self.time = BEGIN
        self.dead = threading.Event()
        self.runs: list[tuple[int, int]] = []
        self.ended: list[int] = []
        self.told: list[wire.ToSupervisor] = []
        self.is_enough = asyncio.Event()
        self._script = script
        self.supervisor, self._ours = socket.socketpair()
        self.control = Control(self._ours, now=lambda: self.time, die=self.dead.set)
        self.store = Store(lambda: self.time)
        self.store.term = self.name = str(uuid.uuid4())
        for number in (1, 2):
            self.store.insert(number, number, b"%d" % number)
        world = World()
        self.term = Term(
            bot=world.bot,
            links=world.links,
            deadline=self.control.deadline,
            make_dispatcher=self._make_dispatcher,
            poll=world.poll,
            tell=self.told.append,
            settle_threads=world.settle_threads,
            over=self.control.term_over,
            redact=str,
            now=lambda: self.time,
        )

    async def handle(self, body: bytes, attempt: int) -> Outcome:
        """As the bot."""
        number = int(body)
        self.runs.append((number, attempt))
        await (self._script(self) if number == 1 else self.is_enough.wait())
        self.ended.append(number)
        return Done()

    def say(self, *messages: wire.ToWorker) -> None:
        """As the supervisor, who is not blocked."""
        self.supervisor.sendall(b"".join(map(wire.encode, messages)))

    def block_until(self, condition: Callable[[], bool], limit_seconds: float = HANG_SECONDS) -> None:
        """Blocks the event loop; other threads go on."""
        end = time.monotonic() + limit_seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.001)

    def row(self, number: int) -> Row:
        (found,) = [row for row in self.store.rows.values() if row.update_id == number]
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while not condition():
                await asyncio.sleep(0.005)

    async def play(self, ends_when: Callable[[], bool]) -> None:
        """One term, until a condition holds or it has ended by itself; then it is ended."""
        messages: asyncio.Queue[wire.ToWorker] = asyncio.Queue()
        leading: list[asyncio.Task[None]] = []

        async def obey() -> None:
            while True:
                match await messages.get():
                    case wire.Lead() as lead:
                        leading.append(asyncio.create_task(self.term.lead(lead)))
                    case wire.EndTerm() as end:
                        self.term.end(end)

        obeying = asyncio.create_task(obey())
        self.control.start()
        self.control.attach(messages.put_nowait)
        try:
            self.say(wire.Lead(term=self.name, deadline=DEADLINE, recover_at=BEGIN))
            await self.until(lambda: ends_when() or self.has_ended)
            self.is_enough.set()
            if not self.has_ended:
                self.say(wire.EndTerm(drain_seconds=5.0))
            await self.until(lambda: self.has_ended)
            await asyncio.wait_for(leading[0], HANG_SECONDS)
        finally:
            obeying.cancel()
            self.supervisor.close()
            self.dead.wait(HANG_SECONDS)
            self.control.detach()
            self._ours.close()

    @property
    def has_ended(self) -> bool:
        return any(isinstance(message, wire.TermEnded) for message in self.told)

    def _make_dispatcher(self, term: str, deadline: Callable[[], float], recover_at: float) -> Dispatcher:
        return Dispatcher(
            inbox=ModelInbox(self.store),
            handler=self,
            term=term,
            deadline=deadline,
            recover_at=recover_at,
            settings=DispatchSettings(
                concurrency=4,
                handler_timeout_seconds=300,
                max_attempts=5,
                dead_letter_days=30,
                margin_seconds=CANCEL_SECONDS,
            ),
            suspect_running=lambda running: None,
            ask_telegram=nullcontext(lambda: self.handle(b"2", 0)),
            clock=lambda: self.time,
        )


def play(loop: str, script: Script, check: Callable[[Scene], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:

        async def main() -> None:
            await check(Scene(script))

        runner.run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_b25_a_handler_that_blocks_the_loop_for_seven_seconds_is_done_and_nobody_is_interrupted(
    loop: str,
) -> None:
    """Its owner is confirmed all the time, and only the lifeline can hear it: it ended its term each time, and ran for ever."""

    async def blocks(scene: Scene) -> None:
        await scene.until(lambda: len(scene.runs) == 2)
        for seconds in (2.0, 4.0, 6.0):
            scene.time = BEGIN + seconds
            scene.say(wire.Extend(term=scene.name, deadline=DEADLINE + seconds))
            scene.block_until(lambda: scene.control.deadline.at == scene.time + DEADLINE - BEGIN, 1.0)
        scene.time = BEGIN + 7.2
        # So long that timers are due, whatever they wait for.
        scene.block_until(lambda: False, 0.6)
        await asyncio.sleep(0.05)

    async def check(scene: Scene) -> None:
        await scene.play(ends_when=lambda: scene.row(1).state is State.DONE)
        assert scene.runs == [(1, 1), (2, 1)]
        assert scene.ended == [1, 2]
        assert [message for message in scene.told if isinstance(message, wire.TermEnded)] == [
            wire.TermEnded()
        ]
        assert [(scene.row(number).state, scene.row(number).attempts) for number in (1, 2)] == [
            (State.DONE, 1)
        ] * 2

    play(loop, blocks, check)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("term", ["ours", "another"])
def test_b06_a_handler_that_blocks_the_loop_past_a_deadline_that_nobody_moved_takes_no_step_more(
    loop: str, term: str
) -> None:
    """An extension that is received later, or is another term's, gives nothing back: the lifeline kills."""

    async def blocks(scene: Scene) -> None:
        await scene.until(lambda: len(scene.runs) == 2)
        if term == "ours":
            scene.time = DEADLINE + 0.1
            scene.say(wire.Extend(term=scene.name, deadline=DEADLINE + 8.0))
        else:
            scene.say(wire.Extend(term="another", deadline=DEADLINE + 8.0))
            # Ours behind it, so that both have been received in time.
            scene.say(wire.Extend(term=scene.name, deadline=DEADLINE + 0.05))
            scene.block_until(lambda: scene.control.deadline.at > DEADLINE)
            scene.time = DEADLINE + 0.1
        scene.block_until(scene.dead.is_set, 10.0)
        await asyncio.sleep(0)

    async def check(scene: Scene) -> None:
        await scene.play(ends_when=lambda: False)
        assert scene.dead.is_set()
        assert scene.runs == [(1, 1), (2, 1)]
        assert scene.ended == []
        assert scene.row(1).state is scene.row(2).state is State.PENDING

    play(loop, blocks, check)
