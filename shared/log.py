"""The log: structlog for ours, `logging` for what libraries and the bot write, one chain and one form for both.

    get_logger("WEBHOOK").info("webhook set", url=...) ──┐
    logging.getLogger("telegram.ext").warning(...) ──────┼─► LineFormat: redaction, then one line ─► LineWriter ─► stdout
    uncaught exceptions, warnings ───────────────────────┘                                               ▲
    print(...), in a process that calls take_prints ─► PrintedLines: redaction ──────────────────────────┘

asyncio needs no handler of its own: its default one reports through `logging`. Fields that belong to everything within a
task are bound once, by structlog.contextvars.

A bot may use structlog too. Its loggers take this form until it calls structlog.configure, which is for its own loggers alone.

Not promised: what is written past it (faulthandler, an interpreter that cannot start), and delivery: see
`shared.line_writer`.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from shared.config import LogFormat
from shared.line_writer import LineWriter
from shared.log_lines import LineFormat, text_of
from shared.printed_lines import PrintedLines
from shared.redaction import Redactor

EXIT_FLUSH_SECONDS = 1.0
"""How long the end of the process waits for a slow reader of its last lines."""

_STDOUT, _STDERR = 1, 2

# They log whole requests: URLs that hold the token or the secret path, and bodies of updates.
_LEAST_LEVELS = {
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "uvicorn.access": logging.WARNING,
    "telegram": logging.INFO,
    # It raises what it logs, and logs a traceback with each answer of a proxy in front of Telegram.
    "telegram.request.BaseRequest": logging.CRITICAL,
}

_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}

_writer: LineWriter | None = None
_sink: _Sink | None = None
_error_writer: LineWriter | None = None
_printed: list[PrintedLines] = []


def get_logger(tag: str) -> FilteringBoundLogger:
    """A logger whose lines carry `[tag]`; may be made before `configure`, and then follows it.

    It does not follow structlog.configure: the bot may call that, and its processors may raise where no update is handled.
    """
    return cast(FilteringBoundLogger, _Logger(tag))


def info_each(tag: str, event: str, field: str, values: Iterable[int]) -> None:
    """A line at level INFO for each value, as `get_logger(tag).info(event, field=value)` writes them where nothing is bound.

    For what is said of every update of a batch: it passes by structlog, which costs more than the line.
    """
    if _sink is None:
        logger = get_logger(tag).bind()
        for value in values:
            logger.info(event, **{field: value})
    else:
        _sink.info_each({"event": event, "tag": tag, "level": "info"}, field, values)


def info_numbers(tag: str, event: str, fields: Mapping[str, int]) -> None:
    """A line at level INFO, as `get_logger(tag).info(event, **fields)` writes it where nothing is bound.

    For what is said of every update, one by one.
    """
    if _sink is None:
        get_logger(tag).info(event, **fields)
    else:
        _sink.info_numbers(tag, event, fields)


def configure(format: LogFormat, level: str, secrets: Iterable[str]) -> None:
    """Sends everything that is logged in this process to standard output. May be called again, with other settings.

    Call it as early as the configuration is known: what is logged before is neither in our form nor free of secrets.

    Args:
        format: of the lines.
        level: name of the least level that is written, in upper case.
        secrets: what must never be seen; short or common ones are treated as `shared.redaction` says.

    Raises:
        KeyError: there is no such level.
    """
    global _sink, _writer
    least = logging.getLevelNamesMapping()[level]
    redactor = Redactor(secrets)
    lines = LineFormat(format, redactor)
    if _writer is None:
        # Registered early, so run late: what others log at their exit is written too.
        atexit.register(flush)
        _writer = LineWriter(_STDOUT)
    _sink = sink = _Sink(_writer, lines, redactor, least)
    _writer.tell_dropped_by(sink.dropped_line)
    # For the bot's loggers: it may replace any of these, and leave the others.
    structlog.configure(
        processors=[*sink.processors[:-1], sink.render_text],
        wrapper_class=sink.wrapper_class,
        logger_factory=lambda *_: _BotsLogger(sink),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Handler(sink)], level=least, force=True)
    for name, name_least in _LEAST_LEVELS.items():
        logging.getLogger(name).setLevel(max(least, name_least))
    logging.captureWarnings(True)
    _install_hooks(get_logger("PROCESS"))


def take_prints() -> None:
    """Has what is printed written by the log's thread, to where it always went: see `shared.printed_lines`.

    Call it once, after `configure` and before anything is printed.
    """
    global _error_writer
    assert _writer is not None
    assert _sink is not None
    if sys.stdout is not None:
        _take("stdout", PrintedLines(_STDOUT, _writer, _sink.redactor, name="<stdout>"))
    if sys.stderr is not None:
        # One writer for one pipe, so that what is printed keeps its order.
        if sys.stdout is not None and os.path.sameopenfile(_STDOUT, _STDERR):
            writer = _writer
        else:
            writer = _error_writer = LineWriter(_STDERR)
            writer.tell_dropped_by(_sink.dropped_line)
        _take("stderr", PrintedLines(_STDERR, writer, _sink.redactor, name="<stderr>"))


def _take(name: str, printed: PrintedLines) -> None:
    _printed.append(printed)
    os.register_at_fork(after_in_child=printed.go_on_after_fork)
    stream = printed.text()
    # Both: whoever redirects what is printed puts back the second.
    for attribute in (name, f"__{name}__"):
        setattr(sys, attribute, stream)


def flush(limit_seconds: float = EXIT_FLUSH_SECONDS) -> bool:
    """Waits for what has been logged and printed to be written; False if the reader did not take it within the limit.

    The end of the interpreter does it by itself; call it before `os._exit` and the like.
    """
    for printed in _printed:
        printed.end()
    end = time.monotonic() + limit_seconds
    writers = [writer for writer in (_writer, _error_writer) if writer is not None]
    flushed = [writer.flush(max(0.0, end - time.monotonic())) for writer in writers]
    return all(flushed)


class _Logger:
    """Ours, of the last `configure` at each call. Before the first it is structlog's own."""

    def __init__(self, tag: str) -> None:
        self._tag = tag

    def __getattr__(self, name: str) -> Any:
        sink = _sink
        bound = structlog.get_logger(tag=self._tag) if sink is None else sink.logger(self._tag)
        return getattr(bound, name)


class _Sink:
    """What structlog calls its logger: takes finished lines."""

    def __init__(self, writer: LineWriter, lines: LineFormat, redactor: Redactor, least: int) -> None:
        self.redactor = redactor
        self.processors = (
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            self.render,
        )
        self.wrapper_class = structlog.make_filtering_bound_logger(least)
        self._writer = writer
        self._lines = lines
        self._shows_info = least <= logging.INFO

    def logger(self, tag: str) -> FilteringBoundLogger:
        """As structlog makes it for a line, but with nothing of its configuration."""
        make: Callable[..., FilteringBoundLogger] = self.wrapper_class
        return make(self, processors=self.processors, context={"tag": tag})

    def render(self, _logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
        """The chain's last processor."""
        return self.line(event)

    def render_text(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        """The same for loggers of the bot, which may have another sink for it: they expect text, without its newline."""
        return _Text(self.line(event)[:-1], "utf-8")

    def dropped_line(self, count: int) -> bytes:
        """What is written when the reader reads again."""
        event = "lines dropped, since they were not read in time"
        return self.line({"event": event, "tag": "LOG", "level": "warning", "count": count})

    def line(self, event: EventDict) -> bytes:
        return self._lines.line(event, now=time.time())

    def info_each(self, event: EventDict, field: str, values: Iterable[int]) -> None:
        if self._shows_info:
            for line in self._lines.lines(event, field, values, now=time.time()):
                self.put(line)

    def info_numbers(self, tag: str, event: str, fields: Mapping[str, int]) -> None:
        if self._shows_info:
            self._writer.put(self._lines.line_of_numbers("info", tag, event, fields, now=time.time()))

    def put(self, line: bytes) -> None:
        """Every level's method."""
        self._writer.put(line)

    debug = info = warning = error = critical = put


class _Text(str):
    """A line of our chain, in which there is nothing secret any more."""

    __slots__ = ()


class _BotsLogger:
    """The same for the bot's loggers, which may have processors of their own: takes whatever these make.

    Only bytes are for the writer: anything else would end its thread, and with that the log.
    """

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink

    def put(self, line: object) -> None:
        """The method of every level and name that structlog's own logger has, which prints too."""
        if isinstance(line, _Text):
            self._sink.put(line.encode() + b"\n")
        else:
            print(line)

    msg = log = debug = info = warn = warning = err = error = failure = critical = fatal = exception = put


class _Handler(logging.Handler):
    """The way of `logging` into the same chain: the tag is the logger's name, the fields are `extra`."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__()
        self._sink = sink

    def handle(self, record: logging.LogRecord) -> bool:
        """As `logging` has it, but for its lock: the sink needs none, and a finalizer may log in the middle of a line of ours.

        The one thread would hold `logging`'s lock and want the writer's, the other the writer's and want `logging`'s.
        """
        kept: object = self.filter(record)
        if isinstance(kept, logging.LogRecord):  # from Python 3.12 on
            record = kept
        if kept:
            self.emit(record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        extra = {key: value for key, value in vars(record).items() if key not in _RECORD_FIELDS}
        self._sink.put(
            self._sink.line(
                {
                    **extra,
                    "event": _message(record),
                    "tag": record.name.upper(),
                    "level": record.levelname.lower(),
                    "exc_info": record.exc_info,
                    "stack_info": record.stack_info,
                }
            )
        )


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit, or somebody's __str__: it is logged as well as can be
        return f"{text_of(record.msg)} (its {len(record.args or ())} arguments do not fit)"


def _install_hooks(log: FilteringBoundLogger) -> None:
    def uncaught(_type: type[BaseException], exc: BaseException, _traceback: Any) -> None:
        log.critical("ended by an exception", exc_info=exc)

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, SystemExit):
            name = args.thread.name if args.thread else "?"
            log.error("thread ended by an exception", thread=name, exc_info=args.exc_value)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        log.error(args.err_msg or "exception ignored", object=args.object, exc_info=args.exc_value)

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable
