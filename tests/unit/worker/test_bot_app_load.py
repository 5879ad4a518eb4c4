"""BOT_APP is found, called and checked; every way in which it is no bot has a line of its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from telegram.ext import Application, CallbackContext

from shared.config import BotMode
from shared.errors import ConfigurationError
from tests.sample_bots import shapes
from tests.sample_bots.settings import API_URL, OTHER_TOKEN, PASSWORD, TOKEN, config_for
from webhook_worker import bot_app
from webhook_worker.bot import Bot

WriteModule = Callable[[str], str]

_numbers = itertools.count(1)


async def load(name: str) -> Bot:
    """The bot of that BOT_APP."""
    return await bot_app.load(config_for(name))


async def fault_of(name: str) -> str:
    """The one fault of a BOT_APP that is no bot."""
    with pytest.raises(ConfigurationError) as caught:
        await load(name)
    [fault] = caught.value.faults
    assert fault.startswith(f"BOT_APP must be a bot; {name}: ")
    assert "\n" not in fault
    for secret in (TOKEN.partition(":")[2], OTHER_TOKEN.partition(":")[2], PASSWORD):
        assert secret not in fault
    return fault


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Writes a module into the working directory and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        name = f"sample_bot_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        return name

    return write


@pytest.mark.parametrize(
    "shape",
    [
        "ready",
        "bare_builder",
        "full_builder",
        "without_job_queue",
        "own_bot",
        "builder_class",
        "with_builder",
        "builder_returned",
        "own_class",
        "with_token",
        "keyword_only",
        "positional_only",
        "without_parameters",
        "asynchronous",
        "factory",
        "factory.build",
        "Factory.build",
    ],
)
async def test_every_shape_becomes_a_bot_of_our_token_and_api(shape: str) -> None:
    """INTERFACE.md, BOT_APP; and nobody is called meanwhile: there is nobody at that address."""
    bot = await load(f"tests.sample_bots.shapes:{shape}")
    assert not bot.has_persistence
    assert not bot.take_token_refused()
    assert bot._app.bot.token == TOKEN
    assert bot._app.bot.base_url == f"{API_URL}/bot{TOKEN}"
    assert not bot._app.running


async def test_a_builder_that_we_complete_has_all_that_we_need() -> None:
    """No updater, since nobody polls here; files come from the same server."""
    for shape in ("bare_builder", "with_builder", "asynchronous"):
        app = (await load(f"tests.sample_bots.shapes:{shape}"))._app
        assert app.updater is None
        assert app.bot.base_file_url == f"{API_URL}/file/bot{TOKEN}"


async def test_an_async_callable_runs_in_the_loop_of_the_bot() -> None:
    """What it makes may be bound to the loop."""
    bot = await load("tests.sample_bots.shapes:asynchronous")
    assert bot._app.bot_data["loop"] is asyncio.get_running_loop()


async def test_an_application_keeps_its_identity_and_class() -> None:
    """The bot's own references to it, and isinstance, hold."""
    bot = await load("tests.sample_bots.shapes:ready")
    assert bot._app is shapes.ready
    again = await load("tests.sample_bots.shapes:ready")
    assert again._app is shapes.ready
    app = (await load("tests.sample_bots.shapes:own_class"))._app
    assert isinstance(app, shapes.OwnApplication)
    assert isinstance(app, Application)
    assert type(app).__name__ == "OwnApplication"
    assert app.shop == "open"
    assert issubclass(app.context_types.context, CallbackContext)


async def test_the_log_says_which_bot_was_built() -> None:
    """Once it is: of what runs here no other line has the name."""
    name = "tests.sample_bots.shapes:with_builder"
    with capture_logs() as lines:
        await load(name)
        with pytest.raises(ConfigurationError):
            await load("tests.sample_bots.shapes:a_text")
    assert lines == [{"event": "application built", "app": name, "tag": "BOT", "log_level": "info"}]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:build", ["there is no module 'no_such_module'", os.getcwd()]),
        ("tests.no_such_bot:build", ["there is no module 'tests.no_such_bot'"]),
        ("tests.conftest.bot:build", ["there is no module 'tests.conftest.bot'"]),
        ("tests.sample_bots.shapes:with_bilder", ["has no 'with_bilder'", "did you mean 'with_builder'?"]),
        ("tests.sample_bots.shapes:qqqqq", ["has no 'qqqqq'", "correct BOT_APP"]),
        ("tests.sample_bots.shapes:factory.bild", ["'factory' has no 'bild'", "did you mean 'build'?"]),
        ("tests.sample_bots.shapes:a_text", ["of type str", "Application", "callable"]),
        ("tests.sample_bots.shapes:OwnApplication.__mro__", ["of type tuple"]),
        ("tests.sample_bots.shapes:needs_more", ["parameter 'database'", "def build(builder):"]),
        ("tests.sample_bots.shapes:forgets_to_return", ["it returned None", "return the Application"]),
        ("builtins:dict", ["it returned of type dict"]),
        (
            "tests.sample_bots.shapes:raises",
            ["calling it raised LookupError: no settings for ***", "shapes.py:"],
        ),
        ("tests.sample_bots.shapes:raises_later", ["LookupError: no settings", "shapes.py:"]),
        ("tests.sample_bots.shapes:raises_in_library", ["RuntimeError", "shapes.py:"]),
        ("tests.sample_bots.shapes:other_token", ["made for bot 987654", "TELEGRAM_BOT_TOKEN", "`builder`"]),
        ("tests.sample_bots.shapes:other_token_of_the_same_bot", ["made for another token"]),
        ("tests.sample_bots.shapes:other_token_in_builder", ["made for bot 987654"]),
        (
            "tests.sample_bots.shapes:other_api",
            ["https://api.telegram.org", "TELEGRAM_API_BASE_URL", API_URL],
        ),
        ("tests.sample_bots.shapes:runs_already", ["runs already", "run_polling"]),
    ],
)
async def test_every_fault_is_told_in_one_line_with_its_remedy(name: str, words: list[str]) -> None:
    """Named: what was found, what to do; never a secret."""
    fault = await fault_of(name)
    for word in words:
        assert word in fault, fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "import no_such_library",
            ["raised ModuleNotFoundError: No module named 'no_such_library'", ".py:1)"],
        ),
        ("from os import no_such_name", ["raised ImportError: cannot import name 'no_such_name'", ".py:1)"]),
        ("x = 1\nraise ValueError('no\\n  shop')", ["raised ValueError: no shop (", ".py:2)"]),
        ("def build(:", ["raised SyntaxError: ", "line 1)"]),
        ("import sys\nsys.exit('stop')", ["raised SystemExit: stop (", ".py:2)"]),
        (f"raise ValueError('{TOKEN} {PASSWORD}' + 'x' * 9000)", ["ValueError: *** ***xxx", "xxx..."]),
        (
            "def __getattr__(name): raise OSError(name)",
            ["reading 'build' of module", "raised OSError: build"],
        ),
    ],
)
async def test_a_module_that_cannot_be_imported_says_why(
    write_module: WriteModule, text: str, words: list[str]
) -> None:
    """A library that it lacks is not a module that is not there; a module that exits does not end us."""
    fault = await fault_of(f"{write_module(text)}:build")
    assert "importing 'sample_bot_" in fault or "reading 'build'" in fault
    for word in words:
        assert word in fault, fault


@pytest.mark.parametrize("call", ["run_polling()", "run_polling(close_loop=False)", "run_webhook(port=0)"])
@pytest.mark.parametrize("place", ["", "def build():\n    "], ids=["import", "call"])
def test_a_bot_that_runs_itself_hears_where_and_what_to_do(tmp_path: Path, call: str, place: str) -> None:
    """In the worker's loop, whose frames look like the bot's own. In a process of its own: it sets signals' handlers."""
    (tmp_path / "running_bot.py").write_text(
        "from telegram.ext import ApplicationBuilder\n"
        f"app = ApplicationBuilder().token({TOKEN!r}).build()\n"
        f"{place}app.{call}\n",
        encoding="utf-8",
    )
    script = (
        "import asyncio\n"
        "from shared.errors import ConfigurationError\n"
        "from tests.sample_bots.settings import config_for\n"
        "from webhook_worker import bot_app, event_loop\n"
        "async def main():\n"
        "    try: await bot_app.load(config_for('running_bot:build'))\n"
        "    except ConfigurationError as exc: print(exc.faults[0])\n"
        "asyncio.Runner(loop_factory=event_loop.Loop).run(main())\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    line = 4 if place else 3
    assert f" (running_bot.py:{line}); leave out start, run_polling and run_webhook" in done.stdout


async def test_the_working_directory_is_looked_in(
    write_module: WriteModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `python -m`, also where somebody took it out of the path."""
    name = write_module("def build(builder): return builder.build()")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    await load(f"{name}:build")


async def test_faults_of_a_bot_that_checks_its_settings_are_all_told(write_module: WriteModule) -> None:
    """The built-in bot's menu does; each line names BOT_APP."""
    name = write_module(
        "from shared.errors import ConfigurationError\n"
        "def build(builder): raise ConfigurationError(('menu.json: one', 'menu.json: two'))\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        await load(f"{name}:build")
    assert caught.value.faults == (
        f"BOT_APP must be a bot; {name}:build: menu.json: one",
        f"BOT_APP must be a bot; {name}:build: menu.json: two",
    )


@pytest.mark.parametrize("mode", ["webhook", "polling"])
async def test_handlers_of_what_telegram_does_not_send_are_a_warning(
    write_module: WriteModule, mode: str
) -> None:
    """Who comes from run_polling(allowed_updates=Update.ALL_TYPES) would miss them without a word."""
    name = write_module(
        "from telegram.ext import ChatMemberHandler\n"
        "async def handle(update, context): pass\n"
        "def build(builder):\n"
        "    app = builder.build()\n"
        "    for kind in (ChatMemberHandler.CHAT_MEMBER, ChatMemberHandler.ANY_CHAT_MEMBER):\n"
        "        app.add_handler(ChatMemberHandler(handle, kind))\n"
        "    return app\n"
    )
    config = replace(config_for(f"{name}:build"), mode=BotMode(mode), allowed_updates=("message",))
    with capture_logs() as lines:
        await bot_app.load(config)
        await bot_app.load(replace(config, allowed_updates=("message", "chat_member")))
    [line] = [line for line in lines if line["tag"] == "CONFIG"]
    assert (line["log_level"], line["kinds"]) == ("warning", "chat_member")
    assert line["remedy"] == "set ALLOWED_UPDATES=message,chat_member"


def test_hooks_and_jobs_do_not_run_while_it_is_built(tmp_path: Path) -> None:
    """A standby's worker builds it too: in a process of its own, with every warning an error."""
    (tmp_path / "hooked_bot.py").write_text(
        "async def hook(app): raise AssertionError('called while it was built')\n"
        "def build(builder):\n"
        "    app = builder.post_init(hook).post_stop(hook).post_shutdown(hook).build()\n"
        "    app.job_queue.run_repeating(hook, interval=0.001, first=0)\n"
        "    return app\n",
        encoding="utf-8",
    )
    script = (
        "import asyncio\n"
        "from tests.sample_bots.settings import config_for\n"
        "from webhook_worker import bot_app\n"
        "async def main():\n"
        "    bot = await bot_app.load(config_for('hooked_bot:build'))\n"
        "    assert not bot._app.job_queue.scheduler.running\n"
        "    await bot.stop()\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[3]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=environ, check=True, timeout=60
    )
