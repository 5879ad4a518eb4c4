"""BOT_APP: finds, calls and checks the operator's bot, and says in one line what is wrong with it.

    package.module:attribute     found from the working directory, as by `python -m`; it is one of
      an Application             taken, if it was made with our token and our Bot API server
      an ApplicationBuilder      completed with what it lacks (token, Bot API server, no updater), and built
      a callable                 plain or async; called once. A parameter `builder` gets a completed ApplicationBuilder,
                                 `token` the token. It returns one of the two above

It is built in every worker, of standbys too, so that a bot that cannot be built is found before its instance is to own.
Nothing is initialised or started here, and nobody is called.

Not promised: that the operator's module, while it is imported or called, comes to an end, or calls nobody.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from telegram._utils.defaultvalue import DefaultValue
from telegram.ext import Application, ApplicationBuilder

from shared import log
from shared.config import Config
from shared.errors import ConfigurationError
from shared.redaction import Redactor
from webhook_worker import code_place
from webhook_worker.bot import Bot
from webhook_worker.update_kinds import unsent_kinds, with_kinds
from webhook_worker.update_run import AnyApplication

AnyBuilder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]

MAX_MESSAGE_CHARACTERS = 500
"""Of an exception in a fault, which is one line."""

_EXPECTED = (
    "a python-telegram-bot Application, an ApplicationBuilder, or a callable that returns one of these"
)
_RUN_BY_US = "leave out start, run_polling and run_webhook: the worker does that"
_KIND_OF_BUILD = "write `def build(builder):`, use that builder, and return the Application that it builds"

_log = log.get_logger("BOT")


async def load(config: Config) -> Bot:
    """Builds the bot that BOT_APP names. To be awaited in the loop in which the bot will live: an async callable may bind
    to it what it makes.

    Raises:
        ConfigurationError: it cannot be imported, found, or called, or is not what it must be. Each fault is one line, names
            BOT_APP, and holds no secret of the configuration.
    """
    redact = Redactor(config.secrets)
    with _faults_told(config.bot_app, redact):
        app = await _application(_find(config.bot_app), config)
        _check(app, config)
        bot = Bot(app, redact=redact)
    _log.info("application built", app=config.bot_app)
    if kinds := unsent_kinds(app, config.allowed_updates):
        log.get_logger("CONFIG").warning(
            "the bot has handlers for updates that Telegram sends only where ALLOWED_UPDATES names them",
            kinds=",".join(kinds),
            remedy=f"set ALLOWED_UPDATES={with_kinds(config.allowed_updates, kinds)}",
        )
    return bot


class _Unusable(Exception):
    """BOT_APP is there and is no bot; the message says what was found, and what to do."""


class _Raised(Exception):
    """The operator's code raised its cause while something was done."""

    def __init__(self, doing: str) -> None:
        super().__init__(doing)
        self.doing = doing


@contextmanager
def _faults_told(name: str, redact: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as exc:
        # The built-in bot's menu, or a bot that checks its settings as we do.
        faults = exc.faults
        cause: BaseException = exc
    except _Unusable as exc:
        faults, cause = (str(exc),), exc
    except _Raised as exc:
        cause = exc.__cause__ or exc
        faults = (f"{exc.doing} raised {_described(cause)}; {_remedy(cause)}",)
    else:
        return
    raise ConfigurationError(
        tuple(redact(f"BOT_APP must be a bot; {name}: {fault}") for fault in faults)
    ) from cause


@contextmanager
def _raising(doing: str) -> Iterator[None]:
    """Around everything that runs code of the operator's; a module that calls sys.exit() is not to end us without a word."""
    try:
        yield
    except (ConfigurationError, _Unusable):
        raise
    except (Exception, SystemExit) as exc:
        raise _Raised(doing) from exc


# ---------------------------------------------------------------------------------------------------------------- finding


def _find(name: str) -> object:
    module_name, _, path = name.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    with _raising(f"importing {module_name!r}"):
        try:
            found: object = importlib.import_module(module_name)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
                raise  # one that it imports
            raise _Unusable(
                f"there is no module {exc.name!r}; correct BOT_APP, or start in the folder that holds it, not in {os.getcwd()}"
            ) from exc
    shown = f"module {module_name!r}"
    for attribute in path.split("."):
        with _raising(f"reading {attribute!r} of {shown}"):
            names = dir(found)
            if attribute not in names and not hasattr(found, attribute):
                close = difflib.get_close_matches(attribute, names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "correct BOT_APP"
                raise _Unusable(f"{shown} has no {attribute!r}; {hint}")
            found = getattr(found, attribute)
        shown = f"{attribute!r}"
    return found


# --------------------------------------------------------------------------------------------------------------- building


async def _application(found: object, config: Config) -> AnyApplication:
    if not isinstance(found, Application | ApplicationBuilder):
        if not callable(found):
            raise _Unusable(f"it is {_a(found)}; name {_EXPECTED}")
        args, kwargs = _arguments(found, config)
        with _raising("calling it"):
            found = found(*args, **kwargs)
            if inspect.isawaitable(found):
                found = await found
        if not isinstance(found, Application | ApplicationBuilder):
            raise _Unusable(f"it returned {_a(found)}; return the Application")
    if isinstance(found, ApplicationBuilder):
        with _raising("building its ApplicationBuilder"):
            return _completed(found, config).build()
    return found


def _arguments(function: Callable[..., object], config: Config) -> tuple[list[object], dict[str, object]]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [], {}  # some callables written in C do not tell
    args: list[object] = []
    kwargs: dict[str, object] = {}
    for parameter in parameters:
        match parameter.name:
            case _ if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            case "builder":
                value: object = _completed(ApplicationBuilder(), config)
            case "token":
                value = config.token.reveal()
            case _ if parameter.default is not parameter.empty:
                value = parameter.default
            case name:
                raise _Unusable(
                    f"it requires a parameter {name!r}, and only `builder` and `token` are given; {_KIND_OF_BUILD}"
                )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            args.append(value)
        else:
            kwargs[parameter.name] = value
    return args, kwargs


def _completed(builder: AnyBuilder, config: Config) -> AnyBuilder:
    """Sets what is not set. What is set, and set wrong, is found in the Application; there is no public way to ask here."""
    token, api = config.token.reveal(), config.api_base_url
    if _is_unset(builder, "bot") and (_is_unset(builder, "updater") or builder._updater is None):
        if _is_unset(builder, "token"):
            builder.token(token)
        if _is_unset(builder, "base_url"):
            builder.base_url(f"{api}/bot")
        if _is_unset(builder, "base_file_url"):
            builder.base_file_url(f"{api}/file/bot")
    if _is_unset(builder, "updater"):
        builder.updater(None)
    return builder


def _is_unset(builder: AnyBuilder, name: str) -> bool:
    return isinstance(getattr(builder, f"_{name}", None), DefaultValue)


# --------------------------------------------------------------------------------------------------------------- checking


def _check(app: AnyApplication, config: Config) -> None:
    if app.running or (app.updater is not None and app.updater.running):
        raise _Unusable(f"it runs already; {_RUN_BY_US}")
    token = config.token.reveal()
    if app.bot.token != token:
        bot_id = app.bot.token.partition(":")[0]
        whose = f"bot {bot_id}" if bot_id.isdecimal() and int(bot_id) != config.bot_id else "another token"
        raise _Unusable(
            f"its Application was made for {whose}, and not with TELEGRAM_BOT_TOKEN; take the parameter `builder`"
        )
    expected = f"{config.api_base_url}/bot{token}"
    if app.bot.base_url != expected:
        raise _Unusable(
            f"its Application calls {app.bot.base_url}, and TELEGRAM_API_BASE_URL means {expected};"
            " take the parameter `builder`, or set base_url"
        )


# ---------------------------------------------------------------------------------------------------------------- telling


def _a(found: object) -> str:
    if found is None:
        return "None"
    name = f"{type(found).__module__}.{type(found).__qualname__}".removeprefix("builtins.")
    return f"of type {name}"


def _described(exc: BaseException) -> str:
    """`ValueError: no such shop (shop.py:12)`: the place is the innermost one in code that is no library's."""
    if isinstance(exc, SyntaxError):
        return f"{type(exc).__name__}: {exc}"  # has its place in its text
    text = " ".join("".join(traceback.format_exception_only(exc)).split())
    if len(text) > MAX_MESSAGE_CHARACTERS:
        text = f"{text[:MAX_MESSAGE_CHARACTERS]}..."
    frames = [
        frame
        for frame in reversed(traceback.extract_tb(exc.__traceback__))
        # Those of extensions, as uvloop's loop.pyx, have no whole path, nor what is frozen.
        if frame.filename != __file__ and os.path.isabs(frame.filename)
    ]
    own = [frame for frame in frames if not frame.filename.startswith(code_place.LIBRARIES)]
    for frame in (own or frames)[:1]:
        return f"{text} ({code_place.shown(frame.filename, frame.lineno)})"
    return text


def _remedy(exc: BaseException) -> str:
    """The loop's errors do not tell who calls run_polling in it that we do that."""
    for frame, _ in traceback.walk_tb(exc.__traceback__):
        is_librarys = frame.f_globals.get("__name__") == Application.__module__
        if is_librarys and frame.f_code.co_name in ("run_polling", "run_webhook"):
            return _RUN_BY_US
    return "mend it"
