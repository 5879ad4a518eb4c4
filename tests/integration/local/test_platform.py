"""The platform against real processes: a fake instance that shows what it was given and misbehaves when told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from deploy.local.errors import InstanceFailed
from deploy.local.guarded import GuardedProcess
from deploy.local.platform.records import Occurrence, OutputLine, Record, Release, Slot
from deploy.local.platform.router import Exchange, Router, Target
from deploy.local.platform.service import Timing
from deploy.local.platform.simulator import Platform
from deploy.local.ports import free_port
from tests.end_to_end.instance import is_alive
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_instance.py")))
LIMIT_SECONDS = 30.0
"""On a hang."""

TIMING = Timing(
    overlap_seconds=0.5,
    no_traffic_seconds=0.3,
    restart_seconds=0.8,
    cancel_seconds=60,
    respawn_seconds=0.05,
    shutdown_delay_seconds=10,
    probe_interval_seconds=0.05,
)
Start = Callable[..., AbstractAsyncContextManager[Platform]]


@pytest.fixture
def platform(tmp_path: Path) -> Start:
    """Starts a platform whose instances are fakes."""

    @asynccontextmanager
    async def start(
        timing: Timing = TIMING, environment: Mapping[str, str] | None = None
    ) -> AsyncIterator[Platform]:
        async with Platform(
            folder=ROOT, log_folder=tmp_path, environment=environment or {}, timing=timing, command=FAKE
        ) as started:
            yield started

    return start


def names_of(platform: Platform, *occurrences: Occurrence) -> list[tuple[Occurrence, str]]:
    """The history, those occurrences only."""
    return [(record.what, record.instance) for record in platform.history if record.what in occurrences]


async def test_an_instance_gets_what_render_gives(platform: Start) -> None:
    """The platform's variables, the service's and the deploy's; and it is reached through the public port."""
    async with (
        platform(environment={"GIVEN": "by the service"}) as service,
        httpx.AsyncClient(timeout=LIMIT_SECONDS) as client,
    ):
        await service.wait_until_live(service.deploy(Release("first")))
        [slot] = service.slots
        answer = (await client.post(f"{service.url}/webhook/x", content=b"hello")).json()
        assert answer["instance"] == slot.name
        assert len(answer["commit"]) == 40
        assert answer["url"] == service.url
        assert answer["given"] == "by the service"
        assert answer["pid"] == slot.pid
        assert (answer["method"], answer["path"], answer["body_size"]) == ("POST", "/webhook/x", 5)
        assert answer["headers"]["x-forwarded-proto"] == "https"
        assert answer["headers"]["host"] == service.url.removeprefix("http://")
        number = service.deploy(Release("second", {"GIVEN": "by the deploy"}))
        await service.wait_until_live(number)
        assert (await client.get(service.url)).json()["given"] == "by the deploy"


async def test_rolling_deploy_loses_no_request_and_rollback_returns(platform: Start, tmp_path: Path) -> None:
    """Requests without a pause through a deploy and a rollback: all 200; the platform's order is Render's."""
    statuses: list[int] = []
    commits: list[str] = []
    is_over = asyncio.Event()

    async def ask(url: str) -> None:
        async with httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
            while not is_over.is_set():
                response = await client.post(f"{url}/webhook/x", content=b"{}")
                statuses.append(response.status_code)
                commits.append(response.json()["commit"])

    timing = replace(TIMING, overlap_seconds=2.0)
    async with platform(timing) as service, asyncio.TaskGroup() as tasks:
        await service.wait_until_live(service.deploy(Release("one"), count=2))
        for _ in range(4):
            tasks.create_task(ask(service.url))
        old, older = service.routed
        begin = len(service.history)
        await service.wait_until_live(service.deploy(Release("two")))
        await service.wait_until_retired(1)
        order = [record.what for record in service.history[begin:]]
        new, newer = service.routed
        assert {new, newer}.isdisjoint({old, older})
        assert order.index(Occurrence.HEALTHY) < order.index(Occurrence.ROUTED)
        assert order.index(Occurrence.ROUTED) < order.index(Occurrence.SIGTERM_SENT)
        times = {record.what: record.at for record in service.history[begin:]}
        # What is noted of a moment may come some milliseconds after it.
        assert times[Occurrence.SIGTERM_SENT] - times[Occurrence.ROUTED] >= 0.9 * timing.overlap_seconds
        await service.wait_until_live(service.rollback())
        await until(
            lambda: commits[-8:], "the first commit answers again", lambda last: last == [commits[0]] * 8
        )
        is_over.set()
    assert set(statuses) == {200}
    assert len(set(commits)) == 2
    assert "stopping" in (tmp_path / f"{old}.log").read_text()


async def test_a_deploy_that_never_gets_healthy_is_cancelled(platform: Start) -> None:
    """Whoever waits for it is told, and the old instance goes on."""
    async with platform() as service, httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
        await service.wait_until_live(service.deploy(Release("good")))
        service.timing = replace(service.timing, cancel_seconds=0.5)
        before = service.routed
        with pytest.raises(InstanceFailed, match="cancelled"):
            await service.wait_until_live(service.deploy(Release("bad", {"FAKE_HEALTH": "503"})))
        await service.wait_until_retired(2)
        assert service.routed == before
        assert (await client.get(service.url)).status_code == 200


async def test_a_deploy_that_crashes_is_tried_again_until_a_better_one_comes(platform: Start) -> None:
    """Several processes under one name, with pauses, and none is left."""
    async with platform() as service:
        bad = service.deploy(Release("crash", {"FAKE_CRASH": "1"}))
        await service.wait_until(lambda: len(names_of(service, Occurrence.EXITED)) >= 2, limit_seconds=30)
        exits = [record for record in service.history if record.what is Occurrence.EXITED]
        assert {record.detail for record in exits} == {"status 7"}
        assert len({record.instance for record in exits}) == 1
        await service.wait_until_live(service.deploy(Release("good")))
        with pytest.raises(InstanceFailed, match="cancelled"):
            await service.wait_until_live(bad)
        await service.wait_until_retired(bad)


async def test_kill_is_followed_by_a_new_process_in_place(platform: Start) -> None:
    """The other instance gets all traffic meanwhile; the dead one's name lives on."""
    async with (
        platform(replace(TIMING, respawn_seconds=1.0)) as service,
        httpx.AsyncClient(timeout=LIMIT_SECONDS) as client,
    ):
        await service.wait_until_live(service.deploy(Release("one"), count=2))
        victim, survivor = service.routed
        first_pid = service.slot(victim).pid
        service.kill(victim)
        await service.wait_until(lambda: service.routed == (survivor,), limit_seconds=30)
        assert (await client.get(service.url)).json()["instance"] == survivor
        await service.wait_until(lambda: set(service.routed) == {victim, survivor}, limit_seconds=30)
        assert service.slot(victim).pid != first_pid
        assert (Occurrence.EXITED, victim) in names_of(service, Occurrence.EXITED)


async def test_scale_restart_and_stop(platform: Start) -> None:
    """What an operator does, on real processes."""
    async with platform() as service:
        await service.wait_until_live(service.deploy(Release("one")))
        [first] = service.routed
        service.scale(3)
        await service.wait_until(lambda: len(service.routed) == 3, limit_seconds=30)
        pid = service.slot(first).pid
        service.restart(first)
        await service.wait_until(
            lambda: first in service.routed and service.slot(first).pid != pid, limit_seconds=30
        )
        service.stop(first)
        service.scale(1)
        await service.wait_until(lambda: len(service.slots) == 1, limit_seconds=30)
        assert len(service.routed) == 1


async def test_the_old_instance_is_restarted_while_the_new_one_has_the_traffic(platform: Start) -> None:
    """Nobody is routed to it, and it ends with its deploy."""
    async with (
        platform(replace(TIMING, overlap_seconds=60)) as service,
        httpx.AsyncClient(timeout=LIMIT_SECONDS) as client,
    ):
        await service.wait_until_live(service.deploy(Release("one")))
        [old] = service.routed
        await service.wait_until_live(service.deploy(Release("two")))
        [new] = service.routed
        pid = service.slot(old).pid
        service.restart(old)
        await service.wait_until(lambda: service.slot(old).pid not in (0, pid), limit_seconds=30)
        assert (await client.get(service.url)).json()["instance"] == new
        assert service.routed == (new,)


async def test_whoever_lets_go_leaves_the_instances_running(platform: Start) -> None:
    """They are served as before, and not replaced when they end; every record of that was told to who listens."""
    told: list[Record] = []
    async with platform() as service, httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
        service.noted.append(told.append)
        await service.wait_until_live(service.deploy(Release("one"), count=2))
        first, second = service.routed
        await service.let_go()
        service.kill(first)
        await until(
            lambda: [record.what for record in told],
            "an exit is told",
            lambda told: Occurrence.EXITED in told,
        )
        for _ in range(4):
            assert (await client.get(service.url)).json()["instance"] == second
        assert service.slot(first).pid == 0
    assert told == service.history
    assert [record.what for record in told].count(Occurrence.SPAWNED) == 2


async def test_a_router_and_a_launch_of_somebody_elses_are_used(tmp_path: Path) -> None:
    """The router is neither opened nor closed; what is launched is probed, routed to and ended as ever."""
    said: list[str] = []

    async def launch(slot: Slot, environment: Mapping[str, str]) -> GuardedProcess:
        return await GuardedProcess.spawn(
            FAKE, environment={**environment, "GIVEN": slot.name}, folder=ROOT, on_line=said.append
        )

    async with Router(free_port()) as router, httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
        async with Platform(
            folder=ROOT, log_folder=tmp_path, environment={}, timing=TIMING, router=router, launch=launch
        ) as service:
            await service.wait_until_live(service.deploy(Release("one")))
            [slot] = service.slots
            assert service.url == f"http://127.0.0.1:{router.port}"
            assert (await client.get(service.url)).json()["given"] == slot.name
        assert "stopping" in said
        assert (await client.get(service.url)).status_code == 502


async def test_an_instance_that_ignores_sigterm_gets_sigkill(platform: Start) -> None:
    """After the shutdown delay, and not before."""
    async with platform(replace(TIMING, shutdown_delay_seconds=0.5)) as service:
        await service.wait_until_live(service.deploy(Release("deaf", {"FAKE_DEAF": "1"})))
        await service.wait_until_live(service.deploy(Release("next")))
        await service.wait_until_retired(1)
        [sigterm] = [record for record in service.history if record.what is Occurrence.SIGTERM_SENT]
        [sigkill] = [record for record in service.history if record.what is Occurrence.SIGKILL_SENT]
        # What is noted of a moment may come some milliseconds after it.
        assert sigkill.at - sigterm.at >= 0.9 * 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="needs PDEATHSIG")
async def test_an_instance_whose_guard_is_killed_is_replaced(platform: Start) -> None:
    """It ends with its guard, the platform notices, and another takes its place."""
    async with platform() as service:
        await service.wait_until_live(service.deploy(Release("one")))
        [slot] = service.slots
        pid = slot.pid
        status = Path(f"/proc/{pid}/status").read_text()
        guard = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))
        os.kill(int(guard), signal.SIGKILL)
        await service.wait_until(lambda: bool(service.routed) and slot.pid not in (0, pid), limit_seconds=30)
        assert not is_alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a subreaper")
async def test_what_an_instance_leaves_behind_is_ended_and_told(platform: Start) -> None:
    """A container ends with its first process; here too, and the history says that there was something left."""
    lines: list[OutputLine] = []
    async with platform() as service:
        service.output.append(lines.append)
        await service.wait_until_live(service.deploy(Release("parent", {"FAKE_CHILD": "1"})))
        child = int(next(line.text for line in lines if line.text.startswith("child")).split()[1])
        [name] = service.routed
        service.stop(name)
        await service.wait_until(lambda: not service.slots, limit_seconds=30)
        assert not is_alive(child)
        assert (Occurrence.LEFTOVERS, name) in names_of(service, Occurrence.LEFTOVERS)


PLATFORM = """
import asyncio, sys
from pathlib import Path
from deploy.local.platform.records import Release
from deploy.local.platform.service import Timing
from deploy.local.platform.simulator import Platform

async def main():
    async with Platform(
        folder=Path.cwd(), log_folder=Path(sys.argv[1]), environment={}, timing=Timing(), command=sys.argv[2:]
    ) as service:
        await service.wait_until_live(service.deploy(Release("one"), count=2))
        print(*(slot.pid for slot in service.slots), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_instances_end_when_the_platform_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the whole local system leaves no process."""
    starter = subprocess.Popen(
        [sys.executable, "-c", PLATFORM, str(tmp_path), *FAKE], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pids = [int(word) for word in starter.stdout.readline().split()]
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    assert len(pids) == 2
    begin = time.monotonic()
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() - begin < 30
        time.sleep(0.01)


def test_secrets_are_not_in_any_process_title(tmp_path: Path) -> None:
    """Everybody on the machine can read arguments; the instance's variables are not among them, in no process."""
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PLATFORM.replace("environment={}", "environment={'GIVEN': 'not-for-everybody'.upper()}"),
            str(tmp_path),
            *FAKE,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    try:
        assert starter.stdout.readline()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                if b"NOT-FOR-EVERYBODY" in path.read_bytes():
                    found.append(path.parent.name)
        assert found == []
    finally:
        starter.kill()
        starter.wait()
        starter.stdout.close()


@asynccontextmanager
async def routed_fake(name: str = "fake") -> AsyncIterator[tuple[Router, list[Exchange]]]:
    """A router before one fake instance, without a platform."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *FAKE,
        env={
            **os.environ,
            "PORT": str(port),
            "RENDER_INSTANCE_ID": name,
            "RENDER_GIT_COMMIT": "",
            "RENDER_EXTERNAL_URL": "",
        },
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline()
        async with Router(free_port()) as router:
            exchanges: list[Exchange] = []
            router.on_exchange = exchanges.append
            router.route([Target(name, port)])
            yield router, exchanges
    finally:
        process.kill()
        await process.communicate()


async def test_large_bodies_pass() -> None:
    """The limit of 1 MiB is the instance's to enforce: more than that must reach it."""
    async with routed_fake() as (router, _), httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
        for size in (0, 1, (1 << 20) + 1, 10 << 20):
            response = await client.post(f"http://127.0.0.1:{router.port}/", content=b"x" * size)
            assert response.json()["body_size"] == size
        chunks = (b"y" * 1000 for _ in range(1000))

        async def stream() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        response = await client.post(f"http://127.0.0.1:{router.port}/", content=stream())
        assert response.json()["body_size"] == 1_000_000
        assert response.headers["x-own"] == "kept"


async def test_connections_to_an_instance_are_used_again() -> None:
    """Many requests in a row cost one connection; callers of their own do not change that."""
    async with routed_fake() as (router, exchanges):
        for _ in range(5):
            async with httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
                for _ in range(5):
                    answer = (await client.get(f"http://127.0.0.1:{router.port}/")).json()
        assert answer["connections"] == 1
        assert [exchange.status for exchange in exchanges] == [200] * 25


async def test_what_the_instance_does_not_answer_is_502() -> None:
    """A closed connection, a refused one, nobody at all: each is told apart for us, and the same for the caller."""
    async with routed_fake() as (router, exchanges), httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
        url = f"http://127.0.0.1:{router.port}"
        assert (await client.post(f"{url}/reset", content=b"{}")).status_code == 502
        router.route([Target("closed", free_port())])
        assert (await client.post(url, content=b"{}")).status_code == 502
        router.route([])
        assert (await client.post(url, content=b"{}")).status_code == 502
        faults = [exchange.fault.partition(":")[0] for exchange in exchanges]
        assert faults == ["no answer", "no connection", "no instance"]


async def test_an_exchange_tells_when_to_come_back() -> None:
    """For whoever judges answers, since Telegram goes by it."""
    async with routed_fake() as (router, exchanges), httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
        url = f"http://127.0.0.1:{router.port}"
        assert (await client.post(f"{url}/busy", content=b"{}")).headers["retry-after"] == "2"
        await client.post(url, content=b"{}")
        assert [(item.status, item.retry_after) for item in exchanges] == [(503, "2"), (200, "")]


async def test_a_caller_that_speaks_no_http_is_dropped() -> None:
    """It harms nobody else."""
    async with routed_fake() as (router, _), httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"this is not http\r\n\r\n")
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()
        assert (await client.get(f"http://127.0.0.1:{router.port}/")).status_code == 200
