"""The life of a real worker process, with the test as its supervisor: begin, term, end, and death."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from shared import clock, wire
from shared.inherited import RECEIVE_VARIABLE
from tests.integration.worker.worker_process import (
    HANG_SECONDS,
    REPOSITORY,
    TOKEN,
    WorkerProcess,
    begin_term,
    client,
    database_of,
    is_gone,
    post,
    states,
    until_gone,
    until_ready,
    until_state,
    update,
    worker,
)
from tests.sample_bots.other_library import put_library


async def deliver(process: WorkerProcess, *bodies: bytes) -> None:
    """Has updates stored by a worker."""
    async with client(process.url) as http:
        await until_ready(http)
        for body in bodies:
            assert (await post(http, body)).status_code == 200


async def test_a05_a_standby_stores_and_the_owner_handles(database_url: str, tmp_path: Path) -> None:
    """Any instance takes any update, and only then answers 200; it is handled when somebody leads, once, and then no more."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await deliver(process, update(1))
        assert await states(database) == {1: "pending"}
        assert process.observations == [], "nothing of the bot runs in a standby"
        await process.lead(database)
        await process.expect(wire.Dispatching)
        await until_state(database, 1, "done")
        await deliver(process, update(1))
        process.send(wire.EndTerm(drain_seconds=5))
        await process.expect(wire.TermEnded)
        assert process.observations[0] == "post_init"
        assert process.observations[-1] == "post_stop"
        assert process.observations.count("end 1") == 1
        await deliver(process, update(2))
        assert await states(database) == {1: "done", 2: "pending"}
        process.send(wire.Exit())
        assert await process.exit_status() == 0


async def test_an_update_of_another_instance_is_noticed_by_the_owner(
    database_url: str, tmp_path: Path
) -> None:
    """By the notification; the poll behind it is the dispatcher's."""
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, name="owner") as owner,
        worker(database_url, tmp_path, name="standby") as standby,
    ):
        await standby.expect(wire.Accepting)
        await owner.expect(wire.Accepting)
        await owner.lead(database)
        await owner.expect(wire.Dispatching)
        await deliver(standby, update(1))
        await owner.observed("end 1")
        await until_state(database, 1, "done")
        assert standby.observations == []


async def test_end_term_waits_for_handlers_and_gives_back_the_rest(database_url: str, tmp_path: Path) -> None:
    """A short handler ends, a long one is cancelled; its update is for the next owner."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database)
        await deliver(process, update(1, "sleep 0.5", chat_id=1), update(2, "sleep 1000", chat_id=2))
        await process.observed("begin 1")
        await process.observed("begin 2")
        process.send(wire.EndTerm(drain_seconds=3))
        await process.expect(wire.TermEnded)
        assert "end 1" in process.observations
        assert process.observations.index("cancelled 2") < process.observations.index("post_stop")
        assert await states(database) == {1: "done", 2: "pending"}


async def test_x_an_instrumentation_of_asyncio_changes_nothing(database_url: str, tmp_path: Path) -> None:
    """The bot has every task wrapped from its import on, as by sentry_sdk: handlers run, and a stop ends what does not end."""
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, bot="instrumented") as process,
    ):
        await process.expect(wire.Accepting)
        await process.lead(database)
        await deliver(
            process, update(1, chat_id=1), update(2, "job", chat_id=2), update(3, "sleep 1000", chat_id=3)
        )
        await until_state(database, 1, "done")
        await process.observed("job begin")
        await process.observed("begin 3")
        process.send(wire.EndTerm(drain_seconds=0))
        await process.expect(wire.TermEnded)
        assert {"cancelled 3", "job cancelled", "post_stop"} <= set(process.observations)
        assert await states(database) == {1: "done", 2: "done", 3: "pending"}
        process.send(wire.Exit())
        assert await process.exit_status() == 0


async def test_a_worker_that_never_led_ends_its_term_at_once(database_url: str, tmp_path: Path) -> None:
    """And does not lead any more: the answer said that nothing will run."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        process.send(wire.EndTerm(drain_seconds=100))
        await process.expect(wire.TermEnded)
        await process.lead(database)
        await deliver(process, update(1))
        process.send(wire.EndTerm(drain_seconds=100))
        await process.expect(wire.TermEnded)
        assert process.observations == []


async def test_an_end_that_comes_with_the_beginning_costs_the_worker_nothing(
    database_url: str, tmp_path: Path
) -> None:
    """An owner that loses its session as it begins: both are read at once, and the deadline would kill the group later."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        term = await begin_term(database)
        deadline = clock.now() + 2.0
        lead = wire.Lead(term=term, deadline=deadline, recover_at=0.0)
        process.send_at_once(lead, wire.EndTerm(drain_seconds=0))
        await process.expect(wire.TermEnded)
        while clock.now() < deadline + 0.6:
            await asyncio.sleep(0.05)
        await deliver(process, update(1))


async def test_timers_wait_until_the_owner_before_is_surely_gone(database_url: str, tmp_path: Path) -> None:
    """Fresh updates do not."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database, recover=2.0)
        recovered_at = clock.now() + 2.0
        await deliver(process, update(1))
        await until_state(database, 1, "done")
        seen = list(process.observations)
        if clock.now() < recovered_at:
            assert "tick" not in seen
        await process.observed("tick")
        assert clock.now() >= recovered_at - 0.1


async def test_b04_at_the_deadline_it_stops_by_itself_and_goes_on_accepting(
    database_url: str, tmp_path: Path
) -> None:
    """Its supervisor is frozen, and says nothing: handlers, timers and the bot end before the deadline."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await deliver(process, update(1, "sleep 1000", chat_id=1), update(2, "job", chat_id=2))
        process.send(wire.SetHealth(ok=True, role="ACTIVE"))
        term = await begin_term(database)
        # Far away: what begins under the term has to have begun by then, however long this test stands still.
        deadline = clock.now() + 20.0
        process.send(wire.Lead(term=term, deadline=deadline, recover_at=0.0))
        await process.observed("begin 1")
        await process.observed("job begin")
        async with client(process.url) as http:
            role = (await http.get("/healthz")).json()["role"]
        if clock.now() < deadline:
            assert role == "ACTIVE"
        await process.expect(wire.TermEnded)
        times = [process.observed_at(line) for line in ("cancelled 1", "job cancelled", "post_stop")]
        assert times == sorted(times)
        assert times[-1] < deadline
        ticks = process.observations.count("tick")
        async with asyncio.timeout(HANG_SECONDS):
            while clock.now() < deadline + 0.5:
                await asyncio.sleep(0.05)
        async with client(process.url) as http:
            assert (await http.get("/healthz")).json()["role"] == "PASSIVE"
        # Extended too late, and led again: it dispatches once in its life.
        process.send(wire.Extend(term=term, deadline=clock.now() + 1000))
        await process.lead(database)
        await deliver(process, update(3))
        assert process.is_alive()
        assert process.observations.count("tick") == ticks
        assert await states(database) == {1: "pending", 2: "done", 3: "pending"}


async def test_extensions_keep_a_term_alive(database_url: str, tmp_path: Path) -> None:
    """Beyond the end that it was given with."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        term = await process.lead(database, seconds=4.0)
        end = clock.now() + 4.0
        process.send(wire.Extend(term=term, deadline=clock.now() + 1000))
        while clock.now() < end + 0.5:
            await asyncio.sleep(0.5)
        await deliver(process, update(1))
        await until_state(database, 1, "done")


async def test_extensions_of_another_term_do_not_keep_it_alive(database_url: str, tmp_path: Path) -> None:
    """It ends at its deadline."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database, seconds=4.0)
        process.send(wire.Extend(term="another", deadline=clock.now() + 1000))
        await process.expect(wire.TermEnded)


async def test_b25_a_handler_that_blocks_the_loop_while_the_owner_is_confirmed_is_done(
    database_url: str, tmp_path: Path
) -> None:
    """When it gives the loop back, the deadline that the loop was told of last is near, and the lifeline's is not."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await deliver(process, update(1, "block 3.5", chat_id=1), update(2, "sleep 1000", chat_id=2))
        term = await process.lead(database, seconds=4.0)
        await process.observed("begin 1")
        # While the loop is blocked, from which only its deadline can be taken.
        process.send(wire.Extend(term=term, deadline=clock.now() + 1000))
        await process.observed("end 1")
        await process.observed("begin 2")
        await until_state(database, 1, "done")
        assert "cancelled 2" not in process.observations
        assert "post_stop" not in process.observations, "the term has ended"


@pytest.mark.parametrize("text", ["block 1000", "stubborn 1000", "thread 1000"])
async def test_x_what_cannot_be_cancelled_is_killed_at_the_deadline(
    database_url: str, tmp_path: Path, text: str
) -> None:
    """The loop is blocked, the cancellation is ignored, or a thread runs: no handler outlives its owner's deadline."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await deliver(process, update(1, text))
        deadline = clock.now() + 4.0
        await process.lead(database, seconds=4.0)
        await process.observed("begin 1")
        assert await process.exit_status() == -signal.SIGKILL
        assert deadline - 0.1 <= clock.now() < deadline + 30.0
        assert "end 1" not in process.observations
        assert "thread-end 1" not in process.observations
        assert "deadline" in process.log


async def test_b32_a_thread_that_ends_in_time_is_waited_for(database_url: str, tmp_path: Path) -> None:
    """Its handler was cancelled, and the term is over only when the thread is."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database)
        await deliver(process, update(1, "thread 2"))
        await process.observed("begin 1")
        process.send(wire.EndTerm(drain_seconds=0))
        await process.expect(wire.TermEnded)
        assert "thread-end 1" in process.observations


async def test_b01_b22_the_end_of_the_supervisor_ends_the_whole_group(
    database_url: str, tmp_path: Path
) -> None:
    """The worker, and a process that the bot started, within a moment; also while the event loop is blocked."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database)
        await deliver(process, update(1, "child", chat_id=1))
        await process.observed("end 1")
        child = int(next(line for line in process.observations if line.startswith("child")).split()[1])
        await deliver(process, update(2, "block 1000", chat_id=2))
        await process.observed("begin 2")
        assert not is_gone(child)
        process.hang_up()
        assert await process.exit_status() == -signal.SIGKILL
        await until_gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel cannot see to it on this system")
async def test_b01_b22_the_kernel_ends_a_group_whose_interpreter_is_held(
    database_url: str, tmp_path: Path
) -> None:
    """No thread of the worker runs, nor a handler of a signal: it is not asked."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database)
        await deliver(process, update(1, "child", chat_id=1))
        await process.observed("end 1")
        child = int(next(line for line in process.observations if line.startswith("child")).split()[1])
        await deliver(process, update(2, "hold", chat_id=2))
        await process.observed("begin 2")
        assert not is_gone(child)
        process.let_go()
        assert await process.exit_status() == -signal.SIGKILL
        await until_gone(child)


async def test_a29_signals_for_the_supervisor_are_ignored_and_not_inherited_as_ignored(
    database_url: str, tmp_path: Path
) -> None:
    """A platform signals every process at once; a child of the bot must still be mortal."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(process.pid, number)
        await process.lead(database)
        await deliver(process, update(1, "child"))
        await process.observed("end 1")
        child = int(next(line for line in process.observations if line.startswith("child")).split()[1])
        descriptors = []
        for name in os.listdir(f"/proc/{child}/fd"):
            with contextlib.suppress(FileNotFoundError):  # of a file that it has just read
                descriptors.append(os.readlink(f"/proc/{child}/fd/{name}"))
        assert not any(target.startswith("socket:") for target in descriptors), descriptors
        os.kill(child, signal.SIGTERM)
        await until_gone(child)
        assert process.is_alive()


async def test_a27_a_blocked_loop_is_seen_in_the_beats(database_url: str, tmp_path: Path) -> None:
    """They stop while it lasts, and then say how long it was; before, they come by themselves, with what they count."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        beat = await process.expect(wire.Beat)
        while beat.pool.size < 3 or not beat.storing:
            beat = await process.expect(wire.Beat)
        await process.lead(database)
        await process.expect(wire.Dispatching)
        await deliver(process, update(1, "block 3"))
        await process.observed("end 1")
        while beat.loop_lag_ms < 2000:
            beat = await process.expect(wire.Beat)


async def test_a27_the_log_names_what_blocks_the_loop(database_url: str, tmp_path: Path) -> None:
    """While it lasts, since it may be the last that this worker says: file, line and update, and never what they wrote."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database)
        await process.expect(wire.Dispatching)
        await deliver(process, update(1, "sleep 1000", chat_id=1))
        await process.observed("begin 1")
        await deliver(process, update(2, "block 1000", chat_id=2))
        await process.logged("[WORKER] event loop is blocked")
        [line] = [line for line in process.log.splitlines() if "event loop is blocked" in line]
        bots = (REPOSITORY / "tests/integration/worker/worker_bots.py").read_text(encoding="utf-8")
        number = 1 + bots.splitlines().index("                time.sleep(float(number))")
        assert f'at="tests/integration/worker/worker_bots.py:{number} in _handle"' in line
        assert 'update_ids="[2]"' in line
        assert "level=warning" in line
        assert "block 1000" not in line


async def test_a_beat_counts_the_inbox(database_url: str, tmp_path: Path) -> None:
    """For /status, of a standby too."""
    async with database_of(database_url), worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            await until_ready(http)
            assert (await post(http, update(1))).status_code == 200
            beat = await process.expect(wire.Beat)
            while beat.inbox is None or beat.inbox.pending != 1:
                beat = await process.expect(wire.Beat)


async def test_b21_a_beat_tells_what_is_completed(database_url: str, tmp_path: Path) -> None:
    """By it the supervisor tells a bot that works from one that dies whatever it runs."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        assert (await process.expect(wire.Beat)).completed == 0
        await process.lead(database)
        await deliver(process, update(1), update(2, chat_id=8))
        while (await process.expect(wire.Beat)).completed != 2:
            pass


@pytest.mark.parametrize(
    ("bot", "environ", "words"),
    [
        ("obedient", {"TELEGRAM_BOT_TOKEN": "", "PORT": "x"}, ("TELEGRAM_BOT_TOKEN", "PORT")),
        ("raising", {}, ("BOT_APP", "no menu today")),
        ("missing", {}, ("BOT_APP", "missing")),
    ],
)
async def test_b21_what_cannot_come_up_says_why(
    database_url: str, tmp_path: Path, bot: str, environ: Mapping[str, str], words: tuple[str, ...]
) -> None:
    """Every fault, a line each, without secrets; then it ends with status 2."""
    async with worker(database_url, tmp_path, bot=bot, environ=environ) as process:
        faults = (await process.expect(wire.StartFailed)).faults
        assert all(any(word in fault for fault in faults) for word in words), faults
        assert not any(TOKEN in fault for fault in faults)
        assert await process.exit_status() == 2


@pytest.mark.parametrize("receives_at_once", ["", "1"])
@pytest.mark.parametrize(
    ("name", "version"), [("python-telegram-bot", "13.15"), ("psycopg", "3.2.9"), ("uvicorn", "0.34.0")]
)
async def test_b21_another_package_than_ours_is_a_fault_that_is_told(
    database_url: str, tmp_path: Path, receives_at_once: str, name: str, version: str
) -> None:
    """The bot's requirements put it in the place of ours; nothing of it can be imported, and still the fault has a name."""
    library = put_library(tmp_path / "library", name, version)
    environ = {"PYTHONPATH": library, RECEIVE_VARIABLE: receives_at_once}
    async with worker(database_url, tmp_path, environ=environ) as process:
        [fault] = (await process.expect(wire.StartFailed)).faults
        assert fault.startswith("BOT_APP must be a bot; ")
        assert f"{name} {version} is installed" in fault
        assert await process.exit_status() == 2


async def test_a_bot_that_stops_running_in_post_init_fails_the_term(
    database_url: str, tmp_path: Path
) -> None:
    """Half of it would be dispatched otherwise."""
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, bot="unwilling") as process,
    ):
        await process.expect(wire.Accepting)
        await process.lead(database)
        failed = await process.expect(wire.LeadFailed)
        assert not failed.transient
        assert "post_init called Application.stop_running()" in failed.reason


async def test_a_handler_that_calls_stop_running_does_not_stop_the_worker(
    database_url: str, tmp_path: Path
) -> None:
    """It stopped the event loop, unflushed, and the next worker's as well."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database)
        await deliver(process, update(1, "stop_running"), update(2, "sleep 0"))
        for update_id in (1, 2):
            await until_state(database, update_id, "done")
        await process.logged("stop_running() does nothing here")
        assert process.log.count("stop_running() does nothing here") == 1


async def test_a_post_init_that_raises_fails_the_term(database_url: str, tmp_path: Path) -> None:
    """The supervisor hears the reason, the log has the traceback, neither has the token."""
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, bot="failing_post_init") as process,
    ):
        await process.expect(wire.Accepting)
        await process.lead(database)
        failed = await process.expect(wire.LeadFailed)
        assert "the shop is closed" in failed.reason
        assert TOKEN not in failed.reason
        await deliver(process, update(1))
        assert await states(database) == {1: "pending"}, "it goes on storing"
        process.send(wire.Exit())
        assert await process.exit_status() == 0
        assert "in post_init" in process.log
        assert TOKEN not in process.log


async def test_b24_a_token_that_telegram_refuses_is_told(database_url: str, tmp_path: Path) -> None:
    """As that, so that the supervisor does not just start another worker."""
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, bot="refused") as process,
    ):
        await process.expect(wire.Accepting)
        await process.lead(database)
        await process.expect(wire.TokenRefused)
        await process.expect(wire.LeadFailed)
        process.send(wire.Exit())
        assert await process.exit_status() == 0
        assert 'reason="InvalidToken: Telegram does not know the token in TELEGRAM_BOT_TOKEN; ' in process.log
        assert "Traceback" not in process.log


async def test_a_term_that_was_superseded_in_the_database_ends(database_url: str, tmp_path: Path) -> None:
    """Somebody else has begun one: the worker says that nothing of it runs."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await process.lead(database)
        await process.expect(wire.Dispatching)
        await begin_term(database)
        await deliver(process, update(1))
        await process.expect(wire.TermEnded)
        assert await states(database) == {1: "pending"}
