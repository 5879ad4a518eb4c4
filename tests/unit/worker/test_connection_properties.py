"""Whatever bytes come, in whatever pieces: with the short way a connection looks from outside as it does without."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.asgi import read_body
from webhook_worker.connection import Connection
from webhook_worker.server import Server

SECRET = (b"x-secret", b"s")


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and is as deaf while it is paused, or closes, as a socket's is."""

    def __init__(self) -> None:
        super().__init__()
        self.said = b""
        self.paused = self.closing = False
        self.protocol: asyncio.Protocol | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closing:
            self.said += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            assert self.protocol is not None
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Site:
    """Stores what comes to one path with the secret, by either way; all else is answered 204 when its body has come."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.paths: list[str] = []
        self.short = 0
        self.is_early = False
        """Begins to answer before the body has come, and ends it afterwards."""

    def take_at_once(
        self,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        tell: Callable[[str | None], None],
    ) -> bool:
        if path != b"/webhook/known" or SECRET not in headers:
            return False
        self.short += 1
        self.stored.append(body)
        asyncio.get_running_loop().call_soon(tell, None)
        return True

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        if self.is_early:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        body = await read_body(receive)
        if body is None:
            return
        is_update = (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/webhook/known", b"")
        if is_update and SECRET in scope["headers"]:
            self.stored.append(body)
            headers = [(b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        else:
            await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def settled() -> None:
    """Until nobody has anything left to do: nothing here waits for more than other tasks."""
    for _ in range(50):
        await asyncio.sleep(0)


async def converse(
    pieces: Sequence[bytes], *, has_short_way: bool, site: Site | None = None
) -> tuple[Site, list[bytes], bool]:
    """What was stored, the status lines that were answered, and whether the connection was ended."""
    site = site or Site()
    server = Server(site.app, take_at_once=site.take_at_once if has_short_way else None)
    server.config.load()
    make = cast(Callable[..., Connection], server.config.http_protocol_class)
    connection, wire = make(config=server.config, server_state=server.server_state, app_state={}), Wire()
    wire.protocol = connection
    connection.connection_made(wire)
    for piece in pieces:
        await settled()
        if wire.closing:
            break
        assert not wire.paused, "somebody who has been answered is not listened to"
        connection.data_received(piece)
    await settled()
    has_ended = wire.closing
    wire.close()
    await settled()
    return site, re.findall(rb"^HTTP/1\.[01] (\d\d\d) ", wire.said, re.MULTILINE), has_ended


def request(
    method: bytes, target: bytes, version: bytes, secret: bytes, more: bytes, body: bytes, *, is_chunked: bool
) -> bytes:
    """As a client writes it."""
    length = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % len(body)
    if is_chunked:
        body = (
            b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:3], body[3:]) if part)
            + b"0\r\n\r\n"
        )
    head = b"%s %s HTTP/%s\r\nhost: x\r\nX-Secret: %s\r\n%s%s\r\n\r\n"
    return head % (method, target, version, secret, more, length) + body


USUAL = {
    "method": b"POST",
    "target": b"/webhook/known",
    "version": b"1.1",
    "secret": b"s",
    "more": b"",
    "is_chunked": False,
}
ODD: dict[str, list[Any]] = {
    "method": [b"GET", b"PUT", b"HEAD", b"FOO", b"post"],
    "target": [
        b"/webhook/known?x=1",
        b"/webhook/other",
        b"/",
        b"/webhook/" + b"x" * 2000,
        b"*",
        b"http://x",
        b"http://x/webhook/known",
    ],
    "version": [b"1.0", b"2.0", b"1"],
    "secret": [b"t", b""],
    "more": [
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"content-length: 3\r\n",
        b"X-Secret: s\r\n",
        b"broken header\r\n",
    ],
    "is_chunked": [True],
}
oddities = st.sampled_from([(name, value) for name, values in ODD.items() for value in values])
# As usual but for one or two things, or none.
requests = st.builds(
    lambda odd, body: request(**{**USUAL, **dict(odd), "body": body}),
    st.lists(oddities, max_size=2),
    st.binary(max_size=12),
)
streams = st.lists(
    st.integers(0, 9).flatmap(
        lambda n: st.sampled_from([b"\r\n", b"\0", b"garbage\r\n\r\n"]) if n == 0 else requests
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=500, deadline=None)
@given(
    streams,
    # Where it is cut besides, or not cut: a whole request in one piece is what may go the short way.
    st.sets(st.integers(1, 5)),
    st.lists(st.integers(1, 600), max_size=2),
    st.integers(0, 3).flatmap(
        lambda n: st.tuples(st.integers(0, 600), st.integers(0, 255)) if n == 0 else st.none()
    ),
)
@example(
    [request(b"POST", b"/webhook/known", b"1.1", b"s", b"", b"{}", is_chunked=False)] * 3, set(), [], None
)
def test_the_short_way_changes_nothing_that_can_be_seen(
    stream: list[bytes], joined: set[int], cuts: list[int], damage: tuple[int, int] | None
) -> None:
    """Requests of all kinds, one after the other, one of their bytes maybe another: the same is stored, in the same order, the
    same is answered, and the connection ends where it would."""
    data = bytearray(b"".join(stream))
    if damage is not None:
        data[damage[0] % len(data)] = damage[1]
    ends = [
        end
        for number, end in enumerate(itertools.accumulate(map(len, stream)), start=1)
        if number not in joined
    ]
    at = sorted({0, len(data), *ends, *(cut for cut in cuts if cut < len(data))})
    pieces = [bytes(data[begin:end]) for begin, end in itertools.pairwise(at)]
    short, answered, ended = asyncio.run(converse(pieces, has_short_way=True))
    long, expected, has_ended = asyncio.run(converse(pieces, has_short_way=False))
    assert ended == has_ended
    if ended:
        # What comes with the end of the connection may have been taken already, and nobody is told.
        first, second = sorted((short.stored, long.stored), key=len)
        assert second[: len(first)] == first
    else:
        assert short.stored == long.stored
    assert answered == expected
    assert answered.count(b"200") <= len(short.stored)
    assert long.short == 0


def test_whole_posts_do_go_the_short_way() -> None:
    """Or nothing was compared above."""
    whole = request(b"POST", b"/webhook/known", b"1.1", b"s", b"", b"{}", is_chunked=False)
    site, answered, _ = asyncio.run(converse([whole, whole, whole], has_short_way=True))
    assert (site.short, answered) == (3, [b"200"] * 3)


@pytest.mark.parametrize("target", [b"http://x", b"http://x:80?y=1", b"HTTP://x?"])
def test_b29_a_host_without_a_path_is_a_request_for_the_root(target: bytes) -> None:
    """Whoever takes us for his proxy asks for a path that is not known, and the connection is good for another request."""
    asked = request(b"GET", target, b"1.1", b"s", b"", b"", is_chunked=False)
    site, answered, has_ended = asyncio.run(converse([asked, asked], has_short_way=True))
    assert (answered, has_ended) == ([b"204", b"204"], False)
    assert site.paths == ["/", "/"]


CHUNKED = b"POST %s HTTP/1.1\r\nhost: x\r\nX-Secret: s\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("target", [b"/webhook/known", b"/webhook/other", b"/"])
@pytest.mark.parametrize(
    "pieces",
    [
        [b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n"],
        [CHUNKED + b"zz\r\n"],
        [CHUNKED, b"zz\r\n"],
        [CHUNKED + b"2\r\n{}\r\n", b"zz\r\n"],
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_b29_a_request_that_turns_out_to_be_no_http_is_told_so(
    target: bytes, pieces: list[bytes], before: int
) -> None:
    """In the pieces of its body, or by how it announces it: 400 as for a head that is none, once, and nothing is stored."""
    good = [request(b"GET", b"/", b"1.1", b"s", b"", b"", is_chunked=False)] * before
    bad = [piece.replace(b"%s", target) for piece in pieces]
    for has_short_way in (True, False):
        site, answered, has_ended = asyncio.run(converse([*good, *bad], has_short_way=has_short_way))
        assert (answered, has_ended) == ([b"204"] * before + [b"400"], True)
        assert site.stored == []


@pytest.mark.parametrize("first", [b"GET", b"POST"])
def test_b29_what_is_no_http_is_not_told_so_in_the_place_of_what_came_before(first: bytes) -> None:
    """That is not answered yet, and its client would take the 400 for its own."""
    good = request(first, b"/webhook/known", b"1.1", b"s", b"", b"{}", is_chunked=False)
    for bad in (b"garbage\r\n\r\n", CHUNKED.replace(b"%s", b"/") + b"zz\r\n"):
        for has_short_way in (True, False):
            _, answered, has_ended = asyncio.run(converse([good + bad], has_short_way=has_short_way))
            assert (answered, has_ended) == ([], True)


def test_b29_what_is_no_http_is_not_told_so_in_the_middle_of_its_answer() -> None:
    """It would be taken for a part of that."""
    site = Site()
    site.is_early = True
    pieces = [CHUNKED.replace(b"%s", b"/"), b"zz\r\n"]
    _, answered, has_ended = asyncio.run(converse(pieces, has_short_way=True, site=site))
    assert (answered, has_ended) == ([b"200"], True)
