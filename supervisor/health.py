"""The supervisor's own HTTP: health on HEALTH_PORT, and answers on the public port while no worker accepts there.

Every answer comes from memory (a26): nothing here awaits Telegram, the database or the worker. The parser is h11; a connection
serves one request, has a few seconds for it, and there are at most `MOST_CONNECTIONS` at once: these are probes, and strangers.

Does not promise to be fast, nor does it serve webhooks: an update gets 503 with `Retry-After: 2`, upon which Telegram comes
back within 2 s instead of its growing backoff (TELEGRAM.md, Delivery).
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

import h11

from shared.answers import RETRY_AFTER_SECONDS, WEBHOOK_PATH, health_answer, ready_answer
from supervisor import messages as m

REQUEST_SECONDS = 5.0
"""For a request and its answer: a probe sends at once, and a stranger who sends nothing would keep its place for ever."""

MOST_CONNECTIONS = 256
"""Telegram's 100 at most, which come here while no worker accepts, and the probes of any platform. More are hung up on, so that
strangers cannot fill our memory with what they begin to send."""

BACKLOG = 2048
"""Said again at every listen, since that sets it anew for everybody on the socket; the same as in __main__."""

_WEBHOOK = re.compile(WEBHOOK_PATH)
_WHOLE_URL = re.compile(r"https?://[^/?]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer without the transport."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def json_answer(status: int, body: object) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, json.dumps(body).encode() + b"\n", (("Content-Type", "application/json"),))


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the answers come from; each is asked at the request."""

    health: Callable[[], m.Health]
    storing: Callable[[], str | None]  # None: an update sent now would be stored; else why not
    status: Callable[[], dict[str, object]]
    webhook_path: str  # of the URL that we register; a secret


def answer_own_port(sources: Sources, method: str, path: str) -> Answer:
    """HEALTH_PORT: /healthz, /readyz, /status, /metrics."""
    routes: dict[str, Callable[[], Answer]] = {
        "/healthz": lambda: _health_answer(sources.health()),
        "/readyz": lambda: json_answer(*ready_answer(sources.storing())),
        "/status": lambda: json_answer(200, sources.status()),
        "/metrics": lambda: _metrics_answer(sources.status()),
    }
    route = routes.get(path)
    if route is None:
        return Answer(404)
    if method not in ("GET", "HEAD"):
        return Answer(405, headers=(("Allow", "GET, HEAD"),))
    return route()


def answer_public_port(sources: Sources, method: str, path: str) -> Answer:
    """PORT while no worker accepts: probes learn why, what may be an update is asked to come back, all else is refused."""
    if path in ("/healthz", "/readyz"):
        if method not in ("GET", "HEAD"):
            return Answer(405, headers=(("Allow", "GET, HEAD"),))
        if path == "/healthz":
            return _health_answer(sources.health())
        return json_answer(*ready_answer("no worker accepts"))
    if _WEBHOOK.fullmatch(path) is None:
        return Answer(404)
    if method != "POST":
        return Answer(405, headers=(("Allow", "POST"),)) if path == sources.webhook_path else Answer(404)
    # Whether it is ours is a worker's to know: a path that was registered before us is looked up in the database.
    return Answer(503, headers=(("Retry-After", str(RETRY_AFTER_SECONDS)),))


def _health_answer(health: m.Health) -> Answer:
    return json_answer(*health_answer(health.role, health.reason, ok=health.ok))


def _metrics_answer(status: dict[str, object]) -> Answer:
    from supervisor import metrics  # not before somebody asks; see there

    return Answer(200, metrics.exposition(status), (("Content-Type", metrics.CONTENT_TYPE),))


def _path_of(target: str) -> str:
    """A proxy may send the whole URL, and write characters in other ways; a worker's server reads all of them alike."""
    whole = _WHOLE_URL.match(target)
    path = target[whole.end() :] if whole is not None else target
    return unquote(path.partition("?")[0])


async def _read_head(conn: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The request but for its body; None if there is none.

    Raises:
        h11.RemoteProtocolError: what came is none.
    """
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(await reader.read(16384))
        else:
            return event if isinstance(event, h11.Request) else None


class HttpServer:
    """Serves one listening socket with a function from (method, path) to an answer."""

    def __init__(self, answer: Callable[[str, str], Answer]) -> None:
        """Does no I/O."""
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self, listener: socket.socket) -> None:
        """Accept on a duplicate of `listener`, so that stopping leaves the socket itself open."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=listener.dup(), backlog=BACKLOG)

    def stop(self) -> None:
        """Accept no more; what is being answered is finished."""
        if self._server is not None:
            # A connection that was accepted in this turn of the loop is given to us in the next. A server that is closed by
            # then drops it without closing it, and its client would wait for nothing (CPython, gh-109564).
            loop = asyncio.get_running_loop()
            for listening in self._server.sockets:
                loop.remove_reader(listening.fileno())
            loop.call_soon(self._server.close)
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MOST_CONNECTIONS:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await self._serve_request(reader, writer)
        except (TimeoutError, OSError, h11.ProtocolError):
            return  # the other side's doing: a probe that went away, a scanner that never comes to an end
        finally:
            self._connections -= 1
            writer.close()

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conn = h11.Connection(h11.SERVER)
        method = ""
        try:
            request = await _read_head(conn, reader)
        except h11.RemoteProtocolError:
            answer = Answer(400)  # no Host, or nothing that is HTTP
        else:
            if request is None:
                return
            method = request.method.decode("ascii", "replace")
            answer = self._answer(method, _path_of(request.target.decode("ascii", "replace")))
        headers = [*answer.headers, ("Content-Length", str(len(answer.body))), ("Connection", "close")]
        writer.write(conn.send(h11.Response(status_code=answer.status, headers=headers)) or b"")
        if method != "HEAD":
            writer.write(conn.send(h11.Data(data=answer.body)) or b"")
        await writer.drain()
        # A body that was not read would turn our close into a reset, and the answer with it would be lost.
        writer.write_eof()
        while await reader.read(65536):
            pass
