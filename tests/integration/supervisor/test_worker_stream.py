"""The supervisor's end of the control stream, with processes that write what a test says, in the pieces that it says."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shared import wire
from supervisor import messages as m
from supervisor.spawn import Spawned, spawn_worker
from supervisor.worker_process import WorkerProcesses
from tests.waiting import until

HANG_SECONDS = 60.0
PROJECT_FOLDER = Path(__file__).parents[3]

# Stands in for the worker: `python -m webhook_worker` finds it in the working folder.
PLAYER = """
import json, os, socket
control = socket.socket(fileno=int(os.environ["WEBHOOK_SUPERVISOR_CONTROL_FD"]))
score = json.load(open("score.json"))
for piece in score["pieces"]:
    control.sendall(bytes.fromhex(piece))
if score["stays"]:
    control.recv(1)
os._exit(0)
"""

SAID: list[wire.ToSupervisor] = [
    wire.Accepting(),
    wire.StartFailed(faults=("PORT must be \U0001f600", "x" * 9000)),
    wire.Dispatching(),
    wire.SuspectRunning(running=True),
    wire.Beat(0.5, False, "database away", wire.InboxDepth(1, 2, 3, 4.5), wire.PoolUse(3, 1, 7)),
    wire.TermEnded(),
]
BROKEN = (
    b"\n",
    b"null\n",
    b'{"x":' + b"[" * 50_000 + b"\n",
    b'{"type":"\xff"}\n',
    b"x" * wire.MAX_LINE_BYTES,
)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which workers start."""
    package = tmp_path / "webhook_worker"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PLAYER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    said=st.lists(st.sampled_from(SAID), max_size=10),
    end=st.sampled_from([b"", *BROKEN]),
    cuts=st.lists(st.integers(min_value=0), max_size=10),
    stays=st.booleans(),
)
def test_whatever_a_worker_says_is_heard_until_it_cannot_be_understood(
    stage: Path, said: list[wire.ToSupervisor], end: bytes, cuts: Sequence[int], stays: bool
) -> None:
    """Every message before that becomes its event, in order, the last words of one that exits included; nothing is raised."""
    stream = b"".join(map(wire.encode, said)) + end
    at = [0, *sorted(cut % (len(stream) or 1) for cut in cuts), len(stream)]
    pieces = [stream[begin:stop].hex() for begin, stop in itertools.pairwise(at)]
    (stage / "score.json").write_text(json.dumps({"pieces": pieces, "stays": stays}))
    events = asyncio.run(play(len(said), is_told_to_go=stays and not end))
    spawned, *heard, exited = events
    assert isinstance(spawned, m.WorkerSpawned)
    assert [replace(event, at=0.0) for event in heard] == [
        m.WorkerSaid(at=0.0, worker=7, message=message) for message in said
    ]
    assert isinstance(exited, m.WorkerExited)
    # What cannot be understood is killed for it, unless it has ended before it was read.
    expected = (
        {"exit status 0"}
        if not end
        else {"killed by SIGKILL"}
        if stays
        else {"exit status 0", "killed by SIGKILL"}
    )
    assert exited.status in expected


async def play(messages: int, *, is_told_to_go: bool) -> list[m.Event]:
    """One worker, from its start until it is reaped."""
    loop = asyncio.get_running_loop()
    troubles: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
    events: list[m.Event] = []
    changed = asyncio.Event()

    def post(event: m.Event) -> None:
        events.append(event)
        changed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = WorkerProcesses(listener, "instance", post)
        loop.add_signal_handler(signal.SIGCHLD, workers.reap)
        try:
            workers.spawn(7, receives_at_once=False)
            async with asyncio.timeout(HANG_SECONDS):
                while not isinstance(events[-1], m.WorkerExited):
                    if is_told_to_go and len(events) == 1 + messages:
                        workers.send(7, wire.Exit())
                    changed.clear()
                    await changed.wait()
        finally:
            workers.kill_all()
            loop.remove_signal_handler(signal.SIGCHLD)
    assert troubles == []
    return events


async def test_b21_a_worker_that_cannot_be_started_is_one_that_has_ended(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more processes, no memory, an environment that is too long: the workers that are there go on."""
    monkeypatch.setenv("TOO_LONG", "x" * 200_000)
    events: list[m.Event] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = WorkerProcesses(listener, "instance", events.append)
        workers.spawn(7, receives_at_once=False)
        workers.kill_all()
    (event,) = events
    assert isinstance(event, m.WorkerExited)
    assert (event.worker, event.status) == (7, "it could not be started: Argument list too long")


def test_a29_a_worker_withstands_the_signals_for_its_supervisor_from_its_first_instruction(
    stage: Path,
) -> None:
    """A platform may signal every process, and again: what is blocked waits until the worker knows what to do with it."""
    ask = "import signal; print(*sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), flush=True)"
    (stage / "webhook_worker" / "__main__.py").write_text(ask)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    reading, writing = os.pipe()
    saved = os.dup(1)
    os.dup2(writing, 1)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            worker = spawn_worker(listener, "instance", receives_at_once=False)
            assert worker.process.wait() == 0
            worker.end()
    finally:
        os.dup2(saved, 1)
        for descriptor in (saved, writing):
            os.close(descriptor)
    with open(reading) as said:
        blocked = {int(number) for number in said.read().split()}
    assert blocked == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *before}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


FIRST = """
import os, signal, socket, sys
sys.path.insert(1, os.environ["PROJECT"])
{before}
from supervisor.spawn import start_first_worker
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
listener = socket.create_server(("127.0.0.1", 0))
worker = start_first_worker(listener, "instance")
if worker is None:
    import runpy
    runpy.run_module("webhook_worker", run_name="__main__", alter_sys=True)
os.kill(worker.pid, signal.SIGTERM)
worker.control.setblocking(True)
os.write(1, worker.control.makefile("rb").readline())
{after}
"""

TELLER = """
import json, os, signal, socket, sys
FOREIGN = os.environ["FOREIGN"]
control = socket.socket(fileno=int(os.environ.pop("WEBHOOK_SUPERVISOR_CONTROL_FD")))
told = dict(
    spawned="-m" in sys.orig_argv, name=__name__, main=sys.modules["__main__"].__spec__.name, argument=sys.argv[0],
    group=os.getpgrp() == os.getpid(), null=os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev,
    blocked=signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []),
    optimized=sys.flags.optimize, foreign=FOREIGN in os.listdir("/proc/self/fd") and os.get_inheritable(int(FOREIGN)),
    instance=os.environ["WEBHOOK_SUPERVISOR_INSTANCE"], receives=os.environ["WEBHOOK_SUPERVISOR_RECEIVE"],
    listens=bool(socket.socket(fileno=int(os.environ["WEBHOOK_SUPERVISOR_LISTEN_FD"])).getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN)),
)
control.sendall(json.dumps(told).encode() + b"\\n")
ends = control.recv(1), os.read(int(os.environ["WEBHOOK_SUPERVISOR_LIFELINE_FD"]), 1)
os._exit(7 if ends == (b"", b"") else 8)
"""


def _run_first(stage: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs it as a supervisor, which somebody has started with a descriptor of theirs open."""
    (stage / "first.py").write_text(script)
    with open(os.devnull) as foreign:
        return subprocess.run(
            [sys.executable, "-O", "first.py"],
            env={**os.environ, "PROJECT": str(PROJECT_FOLDER), "FOREIGN": str(foreign.fileno())},
            stdin=subprocess.PIPE,
            capture_output=True,
            pass_fds=[foreign.fileno()],
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )


def _first_worker(stage: Path, *, before: str = "", after: str = "") -> tuple[dict[str, object], str]:
    """What a first worker tells of itself, and the rest that its supervisor prints. SIGTERM comes to it at its birth."""
    (stage / "webhook_worker" / "__main__.py").write_text(TELLER)
    done = _run_first(stage, FIRST.format(before=before, after=after))
    told, _, rest = done.stdout.partition("\n")
    assert told, done.stderr
    return json.loads(told), rest


COMMON = {
    "name": "__main__",
    "main": "webhook_worker.__main__",
    "group": True,
    "null": True,
    "blocked": True,
    "instance": "instance",
    "receives": "1",
    "listens": True,
    "optimized": 1,
    "foreign": False,
}


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_b22_a_first_worker_is_a_fork_with_a_group_and_ends_of_its_own(stage: Path) -> None:
    """It sees its supervisor's end by both connections, so it holds none of that one's ends; and is reaped like any other."""
    after = "worker.control.close(); worker.let_go(); print(worker.process.wait(), worker.process.wait())"
    told, rest = _first_worker(stage, after=after)
    assert told == {
        **COMMON,
        "spawned": False,
        "argument": str(stage / "webhook_worker" / "__main__.py"),
    }
    assert rest == "7 7\n"


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_b22_a_first_worker_whose_fork_goes_wrong_ends_and_is_no_second_supervisor(stage: Path) -> None:
    """It ends with the reason, and its supervisor goes on."""
    before = (
        "dup2 = os.dup2\n"
        "def refused(*numbers): raise OSError('no more descriptors')\n"
        "os.dup2 = refused\n"
        "os.register_at_fork(after_in_parent=lambda: setattr(os, 'dup2', dup2))"
    )
    script = FIRST.format(before=before, after="print('supervisor', worker.process.wait())")
    done = _run_first(stage, script.replace("os.kill(worker.pid, signal.SIGTERM)", ""))
    assert done.stdout == "supervisor 1\n", done.stderr
    assert done.stderr.endswith("OSError: no more descriptors\n")


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_b22_a_first_worker_that_the_system_reaps_is_waited_for_in_vain_and_without_an_error(
    stage: Path,
) -> None:
    """An ignored SIGCHLD survives the exec of a supervisor."""
    before = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    told, rest = _first_worker(stage, before=before, after="worker.end(); print('ended')")
    assert told["spawned"] is False
    assert rest == "ended\n"


@pytest.mark.parametrize(
    "before",
    [
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "sys.modules['psycopg'] = None",
        "sys.platform = 'darwin'",
        "sys.stdout = sys.stderr = None",
        "os.listdir = lambda path: open('/nowhere')",
    ],
)
def test_b22_a_first_worker_is_an_interpreter_of_its_own_where_a_fork_is_not_safe(
    stage: Path, before: str
) -> None:
    """Beside threads, without a package that both import, on macOS, without a stream, and where nobody knows of threads."""
    told, _ = _first_worker(stage, before=before, after="worker.end(); sys.stdout.flush(); os._exit(0)")
    assert told == {
        **COMMON,
        "spawned": True,
        "argument": str(stage / "webhook_worker" / "__main__.py"),
    }


async def test_b21_a_first_worker_that_ends_before_it_is_known_is_known_to_have_ended() -> None:
    """It was started before the loop: its death may be told while nobody has asked for a worker yet."""
    loop = asyncio.get_running_loop()
    events: list[m.Event] = []
    ours, theirs = socket.socketpair()
    hanging, lifeline = os.pipe()
    os.close(hanging)
    ours.setblocking(False)
    theirs.sendall(wire.encode(wire.Receiving()))
    theirs.close()
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"], process_group=0)
    # Dead, and not reaped.
    await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = WorkerProcesses(listener, "instance", events.append, first=Spawned(process, ours, lifeline))
        loop.add_signal_handler(signal.SIGCHLD, workers.reap)
        try:
            workers.reap()
            workers.spawn(7, receives_at_once=True)
            # At once: a stop that comes next must find a worker that has connections.
            assert [type(event) for event in events] == [m.WorkerSpawned, m.WorkerSaid]
            await until(lambda: list(events), "three events", lambda found: len(found) >= 3)
        finally:
            workers.kill_all()
            loop.remove_signal_handler(signal.SIGCHLD)
    assert [type(event) for event in events] == [m.WorkerSpawned, m.WorkerSaid, m.WorkerExited]
    assert isinstance(events[-1], m.WorkerExited)
    assert events[-1].status == "exit status 7"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lifeline)
