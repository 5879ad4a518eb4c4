"""A small deterministic world: it takes the actions that core.step() gives, and answers them, under a simulated clock.

One or several instances share a modelled Postgres and a modelled Telegram. Every statement is carried out half-way through its
round trip and answered at the end of it, so a fault can fall on either side of its effect. Workers obey the control protocol
and, like the real ones, their deadline by themselves. After every step `invariants.check` is asked.

Faults are plain attributes (`instance.statement_fault = ...`) and methods (`instance.lose_session()`).

Not modelled: the inbox, the sockets, the time that Python takes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from supervisor import core
from tests.models.ownership import ModelledDatabase, Row, SessionKey
from tests.unit.supervisor.modelled_instance import Instance
from tests.unit.supervisor.modelled_process import URL, beat

__all__ = ["URL", "Instance", "ModelledTelegram", "World", "beat"]


@dataclass(slots=True)
class ModelledTelegram:
    """The registration, and every call that changed it."""

    url: str | None = None
    # Of deliveries: Telegram's words, their date, how many updates wait.
    failure: tuple[str, int, int] | None = None
    foreign_secret: bool = False  # the URL may be ours; what comes there has somebody else's secret
    refused_tokens: set[str] = field(default_factory=set)
    is_away: bool = False
    changes: list[tuple[float, str, str]] = field(default_factory=list)  # when, method, by which instance


@dataclass(slots=True)
class World:
    """Clock, queue of what will happen, Postgres, Telegram, instances."""

    tick_seconds: float = 0.5
    beat_seconds: float = 1.0
    statement_seconds: float = 0.004  # a round trip to Postgres
    database_clock_seconds: float = 0.0  # by which its wall clock was set
    narrates: bool = True
    now: float = 1000.0
    database: ModelledDatabase = field(default_factory=ModelledDatabase)
    telegram: ModelledTelegram = field(default_factory=ModelledTelegram)
    instances: dict[str, Instance] = field(default_factory=dict)
    database_up: bool = True
    write_fault: str | None = None  # sessions are opened, and their announcements fail with it
    cuts_hit_begin: bool = False  # a cut of a wait that is granted meanwhile ends the statement behind it
    schema_fault: str | None = None  # no session is opened, since the tables cannot be made
    most_pollers: int = 0
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def boot(self, name: str = "a", **options: Any) -> Instance:
        """Start a process."""
        instance = Instance(self, name, **options)
        self.instances[name] = instance
        instance.tick()
        instance.beat()
        return instance

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._numbers), action))

    def next(self) -> None:
        """Let the next thing happen."""
        at, _, action = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        action()
        self.most_pollers = max(self.most_pollers, self._count_pollers())

    def _count_pollers(self) -> int:
        workers = [w for i in self.instances.values() for w in i.workers.values()]
        return sum(
            w.alive and w.dispatching and w.polls_from is not None and w.polls_from <= self.now < w.deadline
            for w in workers
        )

    def run(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.next()
        self.now = max(self.now, end)

    def run_until(self, condition: Callable[[], bool], limit: float = 30.0) -> float:
        """Let time pass until the condition holds.

        Returns:
            How long it took, in simulated seconds.

        Raises:
            AssertionError: it did not within `limit` simulated seconds.
        """
        start = self.now
        while not condition():
            if self.now - start > limit or not self._heap:
                states = "\n".join(f"{i.name}: {i.state}" for i in self.instances.values())
                raise AssertionError(f"not within {limit} s of simulated time\n{states}")
            self.next()
        return self.now - start

    def grant(self) -> None:
        """Tell those who got the lock from the queue."""
        while self.database.granted:
            name, session = self.database.granted.pop(0)
            if name in self.instances:
                self.instances[name].lock_granted(session)
            else:
                self._ghost_holds((name, session))

    def ghost_takes_lock(self) -> None:
        """Something else takes the lock as soon as it is free, for three seconds."""
        key = ("ghost", next(self._numbers))
        if self.database.holder is None:
            self.database.holder = key
            self._ghost_holds(key)
        else:
            self.database.queue.insert(0, key)

    def _ghost_holds(self, key: SessionKey) -> None:
        def leave() -> None:
            self.database.release(key)
            self.grant()

        self.at(3.0, leave)

    def stop_database(self, seconds: float) -> None:
        """Every session ends, and none can be opened for so long."""
        self.database_up = False

        def up() -> None:
            self.database_up = True

        self.at(seconds, up)
        for instance in self.instances.values():
            if instance.lives:
                instance.lose_session()

    def owners(self) -> list[Instance]:
        """Who believes to own."""
        return [i for i in self.instances.values() if i.lives and core.owns(i.state, self.now)]

    def ghost_peer(
        self, name: str, *, deploy: str | None = "young", token: str = "t", age: float = 0.0
    ) -> None:
        """A row of an instance that is not there: ready, waiting, just announced."""
        self.database.rows[name] = Row(
            name, name, deploy, token, None, True, 0.0, self.now - age, self.now, always_waiting=True
        )

    def name_ghost(self, seconds: float) -> None:
        """The owner before has named its successor, for so long: an instance that is ready, and does not come."""
        self.database.rows["ghost"] = Row("ghost", "ghost", None, "t", None, True, 0.0, self.now, self.now)
        self.database.term.successor, self.database.term.successor_until = "ghost", self.now + seconds
