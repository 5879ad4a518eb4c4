"""Random lives of an inbox: traffic, handlers of all kinds, a database that comes and goes, crashes, deploys.

What must hold is checked on the history afterwards, by SCENARIOS.md's letters:

    L  every update ends done or dead, and dead only if its handler failed or killed its process at every start
    O  one completion for each update, and no run after it
    S  in a lane, what was stored before another was sent is finished before the other starts
    X  no update runs twice at one time, no two of one lane, no two suspects; nothing past the deadline
       and attempts are what was counted: the innocent never come near MAX_ATTEMPTS
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from random import Random

import pytest

from tests.models.inbox import Store
from tests.unit.worker.dispatch_scene import Run, Scene
from tests.unit.worker.virtual_time import now, run
from webhook_worker.lanes import State
from webhook_worker.outcomes import Done, Failed, Outcome, Transient

UPDATES = 60
POISON, FAILING = frozenset({7}), frozenset({11, 12})


@dataclass(frozen=True)
class Sent:
    """When an update was sent, and when it was stored and answered."""

    lane: int | None
    sent_at: float
    stored_at: float


class Life:
    """One random life."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.store = Store(now)
        self.store.term = "term 0"
        self.sent: dict[int, Sent] = {}
        self.scenes: list[Scene] = []
        self.killed = asyncio.Event()

    async def live(self) -> None:
        concurrency = self.random.randint(1, 6)
        scene = self._scene(Scene(store=self.store, concurrency=concurrency))
        traffic = asyncio.create_task(self._send_all())
        crashes = 0
        while True:
            faults = asyncio.create_task(self._trouble(scene))
            await self._until_something_happens(scene, traffic)
            faults.cancel()
            scene.inbox.away = False
            if traffic.done() and self._is_quiet():
                break
            if self.killed.is_set() or (crashes < 3 and self.random.random() < 0.4):
                crashes += not self.killed.is_set()
                self.killed.clear()
                recover_at = now() + self.random.choice([0.0, 4.0])
                scene = self._scene(scene.crash(recover_at, concurrency=concurrency))
            else:
                await scene.end(self.random.choice([0.0, 0.5, 30.0]))
                scene = self._scene(scene.crash(concurrency=concurrency))
        await scene.end(60)

    def _scene(self, scene: Scene) -> Scene:
        self.scenes.append(scene)
        scene.inbox.delay_seconds = lambda: self.random.choice([0.0, 0.001, 0.01, 0.3])
        scene.inbox.ghost_seconds = lambda: self.random.choice([0.1, 1.5, 4.0])
        scene.bot.default = self._script
        scene.bot.scripts = dict.fromkeys(POISON, self._poison)
        scene.bot.scripts |= dict.fromkeys(FAILING, self._failing)
        scene.start()
        return scene

    async def _script(self, attempt: int) -> Outcome:
        await asyncio.sleep(self.random.choice([0.0, 0.01, 0.2, 1.0, 3.0]))
        if self.random.random() < 0.15:
            return Transient("NetworkError", self.random.choice([None, None, 2.5]))
        return Done()

    async def _failing(self, attempt: int) -> Outcome:
        await asyncio.sleep(self.random.random())
        return Failed("Traceback")

    async def _poison(self, attempt: int) -> Outcome:
        await asyncio.sleep(self.random.random())
        self.killed.set()
        await asyncio.sleep(1000)
        return Done()

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for update_id in range(UPDATES):
                await asyncio.sleep(self.random.choice([0.0, 0.0, 0.05, 0.4]))
                group.create_task(self._send(update_id, self.random.choice([1, 2, 3, 4, None])))

    async def _send(self, update_id: int, lane: int | None) -> None:
        sent_at, seq = now(), self.store.reserve()
        # Of several instances each commits when it can: a lower seq may become visible after a higher one.
        await asyncio.sleep(self.random.choice([0.0, 0.0, 0.005, 0.5]))
        self.store.insert(update_id, lane, str(update_id).encode(), seq=seq)
        self.sent[update_id] = Sent(lane, sent_at, now())
        if self.random.random() < 0.9:
            self.scenes[-1].dispatcher.wake()

    async def _trouble(self, scene: Scene) -> None:
        while True:
            await asyncio.sleep(self.random.random() * 4)
            match self.random.randrange(4):
                case 0:
                    scene.inbox.lose_answers = self.random.randint(1, 3)
                case 1:
                    scene.inbox.ghosts = self.random.randint(1, 2)
                case 2:
                    scene.inbox.away = True
                    await asyncio.sleep(self.random.choice([0.1, 2.0, 10.0]))
                    scene.inbox.away = False
                case _:
                    pass

    async def _until_something_happens(self, scene: Scene, traffic: asyncio.Task[None]) -> None:
        assert scene.task is not None
        end = now() + self.random.choice([3.0, 10.0, 100.0])
        while now() < end and not self.killed.is_set() and not (traffic.done() and self._is_quiet()):
            assert not scene.task.done(), "the dispatch ended by itself"
            await asyncio.sleep(0.02)
        assert now() < 10_000, "does not come to an end"

    def _is_quiet(self) -> bool:
        rows = self.store.rows
        return len(rows) == UPDATES and all(row.state in (State.DONE, State.DEAD) for row in rows.values())


def check(life: Life) -> None:
    """Objects to every breach."""
    rows = {row.update_id: row for row in life.store.rows.values()}
    runs: dict[int, list[Run]] = {update_id: [] for update_id in rows}
    for scene in life.scenes:
        assert scene.suspects == [True, False] * (len(scene.suspects) // 2) + [True] * (
            len(scene.suspects) % 2
        )
        for one in scene.bot.runs:
            runs[one.update_id].append(one)
            assert one.ended_at is not None
            assert one.ended_at < scene.deadline
    finished_at = {}
    for commit in life.store.commits:
        if commit.state in (State.DONE, State.DEAD):
            assert commit.update_id not in finished_at, "completed twice"
            finished_at[commit.update_id] = commit.at
    for update_id, row in rows.items():
        expected = State.DEAD if update_id in POISON | FAILING else State.DONE
        assert row.state is expected, f"update {update_id}: {row}"
        assert row.attempts <= (5 if update_id in POISON else 4)
        assert runs[update_id], "never ran"
        for one in runs[update_id]:
            assert update_id in POISON or one.began_at <= finished_at[update_id], "ran after its completion"
        _check_apart(runs[update_id])
    for lane in {1, 2, 3, 4}:
        of_lane = [update_id for update_id in rows if life.sent[update_id].lane == lane]
        _check_apart([one for update_id in of_lane for one in runs[update_id]])
        for first, then in itertools.permutations(of_lane, 2):
            if life.sent[first].stored_at < life.sent[then].sent_at and first not in POISON:
                assert finished_at[first] <= runs[then][0].began_at, f"{then} overtook {first}"


def _check_apart(runs: list[Run]) -> None:
    runs = sorted(runs, key=lambda one: (one.began_at, one.ended_at or 0.0))
    for one, next_one in itertools.pairwise(runs):
        assert one.ended_at is not None
        assert one.ended_at <= next_one.began_at, f"{one} and {next_one} at one time"


@pytest.mark.parametrize("seed", range(60))
def test_a_random_life_breaks_no_promise(seed: int) -> None:
    """Whatever happens in whichever order."""

    async def main() -> Life:
        life = Life(seed)
        await life.live()
        return life

    check(run(main))
