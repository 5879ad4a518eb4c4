"""The log of a whole process: everything that is said in it comes out in one form, without secrets, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

LIMIT_SECONDS = 60.0  # on a hang
TOKEN = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"
PATH = "KvjAXMSnWXhW00lsZYB5Q9qyqWO8zWewNm8FFGGDkN4"
PASSWORD = "correct-horse-battery"
DSN = f"postgresql://bot:{PASSWORD}@db/bot"

BEGIN = f"""
import asyncio, logging, sys, threading, time, warnings
from shared import log
from shared.config import LogFormat
log.configure(LogFormat(sys.argv[1]), sys.argv[2], {[TOKEN, PATH, PASSWORD, DSN]!r})
TOKEN, PATH, PASSWORD, DSN = {TOKEN!r}, {PATH!r}, {PASSWORD!r}, {DSN!r}
"""


def run(script: str, *, form: str = "json", level: str = "INFO") -> subprocess.CompletedProcess[str]:
    """A process that configures the log, then runs a script."""
    command = [sys.executable, "-X", "utf8", "-c", BEGIN + script, form, level]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)


def events(script: str, **options: str) -> list[dict[str, Any]]:
    """What such a process logged, as JSON; it must have ended well."""
    done = run(script, **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_our_lines_and_those_of_libraries_have_one_form() -> None:
    """`logging` of anybody, with `extra`, warnings included; the tag is the logger's name."""
    found = events("""
early = log.get_logger("WEBHOOK").bind(term=7)
early.info("webhook set", url="https://h/webhook/***")
logging.getLogger("my_bot.shop").warning("sold %s of %d", "tea", 3, extra={"order": 5})
logging.getLogger("broken").error("%s and %s", "one")
warnings.warn("old thing", DeprecationWarning, stacklevel=1)
""")
    assert [(event["level"], event["tag"]) for event in found] == [
        ("info", "WEBHOOK"),
        ("warning", "MY_BOT.SHOP"),
        ("error", "BROKEN"),
        ("warning", "PY.WARNINGS"),
    ]
    assert found[0]["event"] == "webhook set"
    assert (found[0]["url"], found[0]["term"]) == ("https://h/webhook/***", 7)
    assert (found[1]["event"], found[1]["order"]) == ("sold tea of 3", 5)
    assert found[2]["event"] == "%s and %s (its 1 arguments do not fit)"
    assert "old thing" in found[3]["event"]


def test_text_lines_of_a_process_read_as_the_interface_says() -> None:
    """What runbooks grep for."""
    done = run('log.get_logger("LOCK").info("PostgreSQL advisory lock acquired", seconds=0.1)', form="text")
    assert done.stdout[20:] == "[LOCK] PostgreSQL advisory lock acquired seconds=0.1\n"


def test_the_level_holds_for_everybody_and_request_logs_stay_silent() -> None:
    """httpx names whole URLs at INFO, python-telegram-bot whole updates at DEBUG: never, at any level."""
    script = """
for name in ("httpx", "httpcore.http11", "uvicorn.access", "x"):
    logging.getLogger(name).info("said by %s", name)
logging.getLogger("telegram.ext").debug("update")
logging.getLogger("telegram.request.BaseRequest").error("what is raised besides")
log.get_logger("OURS").info("said by us")
log.get_logger("OURS").debug("debugged by us")
logging.getLogger("httpx").warning("bad %s", "news")
"""
    said = {
        level: [event["event"] for event in events(script, level=level)]
        for level in ("DEBUG", "INFO", "WARNING")
    }
    assert said == {
        "DEBUG": ["said by x", "said by us", "debugged by us", "bad news"],
        "INFO": ["said by x", "said by us", "bad news"],
        "WARNING": ["bad news"],
    }


ENDS = {
    "main thread": 'raise RuntimeError(f"failed with {DSN}")',
    "thread": "threading.Thread(target=lambda: int(TOKEN)).start()",
    "task": """
async def main():
    task = asyncio.create_task(asyncio.sleep(0), name=PATH)
    asyncio.get_running_loop().call_soon(lambda: int(TOKEN))
    await asyncio.sleep(0)
asyncio.run(main())""",
    "finalizer": """
class Leaky:
    def __del__(self): raise ValueError(PASSWORD)
Leaky()""",
    "chain": """
try:
    try: int(TOKEN)
    except ValueError as exc: raise RuntimeError(DSN) from exc
except RuntimeError: log.get_logger("X").exception("failed", path=PATH, body=DSN.encode())""",
    "libraries": """
logging.getLogger("psycopg").error("cannot connect: %s", DSN)
logging.getLogger("uvicorn.error").error("GET /webhook/%s", PATH)
try: raise ConnectionError(f"https://api.telegram.org/bot{TOKEN}/getMe")
except ConnectionError: logging.exception("again", extra={"dsn": DSN})""",
}


@pytest.mark.parametrize("script", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("form", ["text", "json"])
def test_a21_no_way_out_of_a_process_shows_a_secret(script: str, form: str) -> None:
    """Uncaught in the main thread, a thread, a callback, a finalizer; chained; logged by others: all output is searched."""
    done = run(script, form=form, level="DEBUG")
    said = done.stdout + done.stderr
    assert "***" in said
    assert not [secret for secret in (TOKEN, TOKEN.partition(":")[2], PATH, PASSWORD, DSN) if secret in said]
    assert done.stderr == ""


def test_an_uncaught_exception_still_ends_the_process_with_its_status() -> None:
    """Logged instead of printed, and a traceback with it."""
    done = run("raise RuntimeError('boom')")
    assert done.returncode == 1
    event = json.loads(done.stdout.splitlines()[-1])
    assert (event["level"], event["tag"]) == ("critical", "PROCESS")
    assert event["exception"].endswith("RuntimeError: boom")


def test_the_log_may_be_configured_again() -> None:
    """First without secrets, to report what the configuration lacks, then in full; loggers made before follow."""
    found = events("""
early = log.get_logger("EARLY")
early.info("first")
log.configure(LogFormat.JSON, "WARNING", ["another-secret"])
early.info("not written")
early.warning("see another-secret")
logging.getLogger("x").warning("see another-secret")
""")
    assert [event["event"] for event in found] == ["first", "see ***", "see ***"]


# What bots have structlog do, each in a process of its own.
BOTS = {
    "raises": "def raises(logger, method, event): raise LookupError\nstructlog.configure(processors=[raises])",
    "another place": 'structlog.configure(logger_factory=structlog.WriteLoggerFactory(open(os.devnull, "w")))',
    "coroutines": "structlog.configure(wrapper_class=structlog.stdlib.AsyncBoundLogger)",
    "logging": """
structlog.configure(
    [structlog.stdlib.add_logger_name, structlog.stdlib.render_to_log_kwargs],
    structlog.stdlib.BoundLogger,
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)""",
    "no level": "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))",
    "a context": "class NoContext(dict): __init__ = copy = None\nstructlog.configure(context_class=NoContext)",
    "in place": "structlog.get_config()['processors'].clear()",
    "nothing": "structlog.reset_defaults()",
}


@pytest.mark.parametrize("bot", BOTS.values(), ids=BOTS)
def test_what_the_bot_has_structlog_do_is_not_done_to_our_lines(bot: str) -> None:
    """Made before or after: the form, the level, what is bound, and tracebacks stay."""
    found = events(f"""
import os, structlog
early = log.get_logger("EARLY")
early.info("first")
{bot}
early.info("second", number=2)
early.debug("not written")
log.get_logger("X").bind(term=7).error("third")
with structlog.contextvars.bound_contextvars(update_id=5):
    early.warning("fourth")
    try: int("x")
    except ValueError: early.exception("fifth")
log.configure(LogFormat.JSON, "WARNING", ["another-secret"])
early.info("not written")
early.warning("sixth another-secret")
""")
    assert [(event["level"], event["tag"], event["event"]) for event in found] == [
        ("info", "EARLY", "first"),
        ("info", "EARLY", "second"),
        ("error", "X", "third"),
        ("warning", "EARLY", "fourth"),
        ("error", "EARLY", "fifth"),
        ("warning", "EARLY", "sixth ***"),
    ]
    assert (found[1]["number"], found[2]["term"], found[3]["update_id"]) == (2, 7, 5)
    assert found[4]["update_id"] == 5
    assert "ValueError" in found[4]["exception"]


def test_a_bots_structlog_has_our_form_where_it_asks_for_no_other() -> None:
    """Level and fields that are bound included."""
    found = events("""
import structlog
bot = structlog.get_logger(shop="tea")
structlog.contextvars.bind_contextvars(update_id=5)
bot.info("sold for %s", PASSWORD, count=3)
bot.debug("not written")
""")
    assert [(event["event"], event["shop"], event["update_id"]) for event in found] == [
        ("sold for ***", "tea", 5)
    ]


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ("structlog.processors.JSONRenderer()", '{"shop": "***", "event": "sold"}'),
        ("structlog.processors.JSONRenderer(serializer=bytes_of)", "b'sold ***'"),
        ("structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)", "sold shop=***"),
    ],
)
@pytest.mark.parametrize(
    "wrapper", ["structlog.BoundLogger", "structlog.stdlib.BoundLogger", "structlog.stdlib.AsyncBoundLogger"]
)
def test_what_only_the_processors_of_a_bot_make_is_printed(wrapper: str, processor: str, said: str) -> None:
    """As it is, but for secrets; by every method that its logger has. The log goes on."""
    done = run(f"""
import structlog
def bytes_of(event, **_): return f"{{event['event']}} {{event['shop']}}".encode()
log.take_prints()
structlog.configure(processors=[{processor}], wrapper_class={wrapper})
bot = structlog.get_logger(shop=TOKEN)
async def main():
    for name in ("debug", "info", "warning", "error", "critical", "fatal", "exception"):
        said = getattr(bot, name)("sold", **({{"exc_info": False}} if name == "exception" else {{}}))
        if said is not None: await said
    log.get_logger("END").info("end")
asyncio.run(main())
assert log.flush(60)
""")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, end = done.stdout.splitlines()
    assert [line.strip().replace(', "exc_info": false', "") for line in lines] == [said] * 7
    assert json.loads(end)["event"] == "end"


def test_our_form_goes_to_the_sink_that_a_bot_sets() -> None:
    """A file, or `logging`; as text, whole."""
    done = run(
        """
import structlog
structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))
structlog.get_logger().info("sold", shop=TOKEN)
""",
        form="text",
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr[20:] == "[] sold shop=***\n"


# Far more than pipe and queue hold, from within an event loop; then a clean end.
TALKATIVE = """
async def main():
    for number in range(20_000):
        log.get_logger("TALK").info("talk", number=number, text="x" * 1000)
        if number % 100 == 0:
            await asyncio.sleep(0)
    sys.stderr.write("lived")
asyncio.run(main())
"""


def test_b15_a_line_of_another_thread_is_not_waited_for() -> None:
    """Nothing is locked while a line is made: a finalizer that logs in the middle of one would wait for who waits for it."""
    found = events("""
began, goes_on = threading.Event(), threading.Event()
class Slow:
    def __str__(self):
        began.set()
        assert goes_on.wait(60)
        return "slow"
beside = threading.Thread(target=lambda: logging.getLogger("BOT").warning("%s", Slow()))
beside.start()
began.wait()
fallback = threading.Timer(30, goes_on.set)  # so that it fails rather than hangs
fallback.start()
logging.getLogger("BOT").warning("quick")
assert not goes_on.is_set()
fallback.cancel()
goes_on.set()
beside.join()
""")
    assert [event["event"] for event in found] == ["quick", "slow"]


def test_b15_a_process_whose_output_nobody_reads_lives_and_ends() -> None:
    """Its event loop goes on, and its end waits a bounded time; later the reader gets whole lines and the number of others."""
    command = [sys.executable, "-c", BEGIN + TALKATIVE, "json", "INFO"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.read() == b"lived"  # at the end of the process, with stdout still unread
        assert process.wait(LIMIT_SECONDS) == 0
        lines = process.stdout.read().splitlines()
    for line in lines[:-1]:  # the last may be cut by the end of the process
        assert json.loads(line)["event"] == "talk"


def test_b15_a_reader_that_comes_back_hears_how_much_it_missed() -> None:
    """Every line was either written or counted."""
    script = TALKATIVE + "sys.stdin.read(); log.get_logger('END').info('end'); assert log.flush(60)"
    command = [sys.executable, "-c", BEGIN + script, "json", "INFO"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.read(5) == b"lived"
        process.stdin.close()
        found = [json.loads(line) for line in process.stdout.read().splitlines()]
        assert process.wait(LIMIT_SECONDS) == 0
    told = sum(event["count"] for event in found if event["tag"] == "LOG")
    assert 0 < told < 20_000
    assert len([event for event in found if event["tag"] in ("TALK", "END")]) + told == 20_001


def test_b15_a_process_whose_reader_is_gone_ends_well() -> None:
    """A closed pipe is no reason to fail."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", BEGIN + 'log.get_logger("X").info("x")', "text", "INFO"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=LIMIT_SECONDS, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_lines_of_two_processes_on_one_pipe_stay_whole() -> None:
    """Supervisor and worker share standard output; up to PIPE_BUF the system keeps a write together."""
    script = "for number in range(2000): log.get_logger(sys.argv[3]).info('line', text=sys.argv[3] * 500)"
    script += "\nassert log.flush(60)"  # at its end a process waits for a slow reader for a second
    reader, writer = os.pipe()
    processes = [
        subprocess.Popen([sys.executable, "-c", BEGIN + script, "json", "INFO", name], stdout=writer)
        for name in ("A", "B")
    ]
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = [json.loads(line) for line in stream]
    assert [process.wait(LIMIT_SECONDS) for process in processes] == [0, 0]
    assert [event["text"] for event in found if event["tag"] == "A"] == ["A" * 500] * 2000
    assert [event["text"] for event in found if event["tag"] == "B"] == ["B" * 500] * 2000


def test_a_line_for_each_of_a_batch() -> None:
    """As a logger would write them, at the level of INFO, and before anything is configured too."""
    script = 'log.info_each("WEBHOOK", "received", "update_id", [5, 6])'
    found = events(script)
    assert [(event["level"], event["tag"], event["event"], event["update_id"]) for event in found] == [
        ("info", "WEBHOOK", "received", 5),
        ("info", "WEBHOOK", "received", 6),
    ]
    assert events(script, level="WARNING") == []
    unconfigured = "from shared import log\n" + script
    done = subprocess.run([sys.executable, "-c", unconfigured], capture_output=True, text=True, check=True)
    assert done.stdout.count("received") == 2


def test_a_line_of_numbers() -> None:
    """As a logger would write it, at the level of INFO, and before anything is configured too."""
    script = 'log.info_numbers("FLOW", "/start from", {"user_id": 42, "update_id": 7})'
    [found] = events(script)
    assert (found["level"], found["tag"], found["event"]) == ("info", "FLOW", "/start from")
    assert (found["user_id"], found["update_id"]) == (42, 7)
    assert events(script, level="WARNING") == []
    unconfigured = "from shared import log\n" + script
    done = subprocess.run([sys.executable, "-c", unconfigured], capture_output=True, text=True, check=True)
    assert done.stdout.count("/start from") == 1
