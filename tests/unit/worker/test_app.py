"""The table of INTERFACE.md, row by row and in its order, against the application alone."""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from starlette.types import ASGIApp
from structlog.testing import capture_logs

from shared.answers import ready_answer
from shared.database import DatabaseAway
from shared.secret import digest
from webhook_worker.app import App, Webhook
from webhook_worker.health import Health
from webhook_worker.ingest import BufferFull, NotStored, Tell
from webhook_worker.registrations import Registrations
from webhook_worker.rest_app import rest_app
from webhook_worker.updates import MAX_BODY_BYTES
from webhook_worker.verify import Registration, Standing, registration_of

PATH, SECRET = "p" * 40, "s" * 40
SECRET_HEADER = b"x-telegram-bot-api-secret-token"
GOOD = b'{"update_id": 5, "message": {"chat": {"id": 3}}}'


class Site:
    """The application with everything around it under control."""

    def __init__(self, recorded: Sequence[Registration] | None = ()) -> None:
        self.recorded = recorded  # None: the database is away
        self.lookups = 0
        self.stored: list[tuple[int, int | None, bytes]] = []
        self.refusal: NotStored | None = None
        self.fault: str | None = None
        self.time = 1000.0
        self.foreign: list[float] = []
        self.owned_until: float | None = None
        self.health = Health(clock=lambda: self.time)
        self.health.owned_until = lambda: self.owned_until
        self.webhook = Webhook(
            registrations=Registrations(
                registration_of(PATH, SECRET), self.fetch, clock=lambda: self.time, sleep=self.sleep
            ),
            storage=self,
            foreign_secret=lambda: self.foreign.append(self.time),
            clock=lambda: self.time,
            body_limit_seconds=0.05,
        )
        probes = {b"/healthz": self.health.answer, b"/readyz": lambda: ready_answer(self.fault)}
        self.app = App(self.webhook, probes, make_rest=self.make_rest)
        self.rests = 0
        self.failing_rests = 0
        self.make_one_rest: Callable[[], ASGIApp] = rest_app

    async def make_rest(self) -> ASGIApp:
        self.rests += 1
        if self.rests <= self.failing_rests:
            raise ImportError("no memory left")
        return self.make_one_rest()

    async def fetch(self) -> Sequence[Registration]:
        self.lookups += 1
        if self.recorded is None:
            raise DatabaseAway("connection refused")
        return self.recorded

    async def sleep(self, seconds: float) -> None:
        self.time += seconds

    def store(self, update_id: int, lane: int | None, body: bytes) -> asyncio.Future[None]:
        if self.refusal is not None:
            raise self.refusal
        self.stored.append((update_id, lane, body))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def take(self, update_id: int, lane: int | None, body: bytes, tell: Tell) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.stored.append((update_id, lane, body))

    async def request(
        self,
        method: str = "POST",
        path: str = f"/webhook/{PATH}",
        *,
        secret: str | None = SECRET,
        body: bytes | Iterable[bytes | None] = GOOD,
        headers: Sequence[tuple[str, str]] = (),
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body; a piece None of the body never comes. Status 0: not answered."""
        pieces = [body] if isinstance(body, bytes) else list(body)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not pieces:
                return {"type": "http.disconnect"}
            piece = pieces.pop(0)
            if piece is None:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        named = [*headers, *([("x-telegram-bot-api-secret-token", secret)] if secret is not None else [])]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 5),
            "headers": [(name.encode(), value.encode()) for name, value in named],
        }
        await asyncio.wait_for(self.app(scope, receive, send), 20)
        if not sent:
            return 0, {}, b""
        answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], answer, b"".join(message.get("body", b"") for message in sent[1:])

    async def status(self, *arguments: Any, **named: Any) -> int:
        """Of a request to the webhook, whose answer must have no body."""
        status, headers, body = await self.request(*arguments, **named)
        assert body == b""
        assert headers.get("content-length", "0") == "0"
        assert headers.get("retry-after") == ("2" if status == 503 else None)
        return status


async def test_a_right_request_is_stored_as_it_came_and_answered_200() -> None:
    """With an empty body, so that nothing is taken for a Bot API call."""
    site = Site()
    assert await site.status() == 200
    assert site.stored == [(5, 3, GOOD)]


async def test_white_space_after_the_secret_is_none_of_it() -> None:
    """RFC 9110, 5.5: a proxy may put it there."""
    assert await Site().status(secret=SECRET + " \t") == 200


async def test_a_body_in_pieces_is_put_together() -> None:
    """However it arrives."""
    site = Site()
    assert await site.status(body=[GOOD[:7], b"", GOOD[7:]]) == 200
    assert site.stored == [(5, 3, GOOD)]


async def test_a05_a23_what_cannot_be_stored_is_503_with_retry_after_2() -> None:
    """Database away, or buffer full: never a 200 without a commit."""
    site = Site()
    for refusal in (NotStored("database away"), BufferFull("full")):
        site.refusal = refusal
        assert await site.status() == 503


@pytest.mark.parametrize(
    "path",
    [
        "/webhook/short",
        f"/webhook/{PATH}/",
        f"/webhook/{PATH}x" + "y" * 100,
        f"/webhook/%2570{PATH[1:]}",
        f"/webhook/{PATH}%00",
        f"/webhook/{PATH}%0A",
        f"/webhook/{PATH}%2F",
        f"/webhook/x%2F..%2F{PATH}",
        f"/webhook/{PATH}%",
        f"/webhook/{PATH[1:]}%7",
        f"/webhook/{PATH[1:]}%F0",
    ],
)
async def test_a_path_that_cannot_be_secret_is_404_without_a_lookup(path: str) -> None:
    """Scanners cost nothing."""
    site = Site(None)
    assert await site.status(path=path) == 404
    assert site.lookups == 0


@pytest.mark.parametrize("path", [f"/webhook/%70{PATH[1:]}", f"/%77ebhook/{PATH}", f"/webhook%2f{PATH}"])
async def test_a_path_may_be_written_in_several_ways(path: str) -> None:
    """As the supervisor reads it while it stands in: by a proxy on the way that writes characters so."""
    site = Site()
    assert await site.status(path=path) == 200
    assert site.stored == [(5, 3, GOOD)]
    assert await site.status(path=path, secret=None) == 401
    site.health.set("PASSIVE", None, ok=True)
    assert (await site.request("GET", "/%68ealth%7A"))[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/webhook", "/status", "/metrics", "/docs", "/openapi.json", "/healthz/", "/.env"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_everything_else_is_404_on_the_public_port(method: str, path: str) -> None:
    """/status and /metrics too; no redirects, and no word more than that."""
    status, headers, body = await Site().request(method, path)
    assert (status, headers, body) == (404, {"content-length": "0"}, b"")


async def test_another_method_of_an_endpoint_more_is_405_without_a_body() -> None:
    """Whoever adds one need not think of it."""
    rest = rest_app()

    @rest.get("/more")
    async def more() -> None: ...

    site = Site()
    site.make_one_rest = lambda: rest
    assert (await site.request("GET", "/more"))[0] == 200
    assert await site.request("POST", "/more") == (405, {"allow": "GET", "content-length": "0"}, b"")


async def test_an_unknown_path_is_404_after_a_lookup() -> None:
    """It could be one that another instance has just recorded."""
    site = Site()
    assert await site.status(path=f"/webhook/{'q' * 40}") == 404
    assert site.lookups == 1
    assert site.foreign == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_another_method_is_405_on_a_known_path_and_404_elsewhere(method: str) -> None:
    """The path is checked before the method, the method before the secret; nothing is looked up."""
    site = Site(None)
    for secret in (SECRET, "wrong" * 5, None):
        assert await site.status(method, secret=secret) == 405
        assert await site.status(method, f"/webhook/{'q' * 40}", secret=secret) == 404
    assert site.lookups == 0


@pytest.mark.parametrize("body", [GOOD, b"not json", b"x" * (MAX_BODY_BYTES + 1)])
@pytest.mark.parametrize("secret", [None, "", "short", "w" * 40, SECRET + "s"])
async def test_a_wrong_secret_is_401_before_anything_is_said_of_the_body(
    secret: str | None, body: bytes
) -> None:
    """And the owner is told, who may have to register again."""
    site = Site()
    assert await site.status(secret=secret, body=body) == 401
    assert site.stored == []
    assert len(site.foreign) == 1


@pytest.mark.parametrize("secret", [None, "short"])
async def test_b29_a_secret_that_cannot_be_one_is_401_without_a_lookup(secret: str | None) -> None:
    """Also while the database is away: no registration could make it right."""
    site = Site(None)
    assert await site.status(secret=secret) == 401
    assert site.lookups == 0


@pytest.mark.parametrize("path", [PATH, "q" * 40])
async def test_b28_while_registrations_cannot_be_looked_up_a_wrong_secret_is_503(path: str) -> None:
    """Telegram will repeat it, and by then it may be known; 401 might be wrong."""
    site = Site(None)
    with capture_logs() as lines:
        assert await site.status(path=f"/webhook/{path}", secret="w" * 40) == 503
        assert await site.status(path=f"/webhook/{path}", secret="v" * 40) == 503
    # b15: once, since anybody can cause one with each request.
    assert [line["event"] for line in lines] == ["cannot tell whether a request is Telegram's"]


@pytest.mark.parametrize(("path", "secret"), [(PATH, "t" * 40), ("q" * 40, "t" * 40)])
async def test_b28_a_registration_that_another_instance_recorded_is_accepted(path: str, secret: str) -> None:
    """The rotation reaches the old instances at the first request that comes by it."""
    site = Site([Registration(digest(path.encode()), digest(secret.encode()), Standing.RECORDED)])
    assert await site.status(path=f"/webhook/{path}", secret=secret) == 200
    assert site.lookups == 1
    assert await site.status() == 200
    assert site.foreign == []


async def test_b28_a_superseded_registration_is_accepted_and_the_owner_told() -> None:
    """Late deliveries of a rotation are taken; if they do not end, somebody registered the old secret."""
    site = Site([Registration(digest(PATH.encode()), digest(b"t" * 40), Standing.SUPERSEDED)])
    assert await site.status(secret="t" * 40) == 200
    assert len(site.foreign) == 1


@pytest.mark.parametrize("standing", [Standing.RECORDED, Standing.SUPERSEDED])
async def test_b28_a_secret_whose_time_is_over_is_refused_the_first_time(standing: Standing) -> None:
    """What was looked up at the rotation does not vouch for it hours later."""
    site = Site([Registration(digest(b"q" * 40), digest(b"t" * 40), standing)])
    assert await site.status(path=f"/webhook/{'q' * 40}", secret="t" * 40) == 200
    site.recorded = []
    site.time += 6.0
    assert await site.status(path=f"/webhook/{'q' * 40}", secret="t" * 40) == 404
    assert len(site.stored) == 1


async def test_b28_an_old_secret_is_503_while_it_cannot_be_looked_up() -> None:
    """Telegram will repeat it; ours is taken as ever."""
    site = Site([Registration(digest(PATH.encode()), digest(b"t" * 40), Standing.RECORDED)])
    assert await site.status(secret="t" * 40) == 200
    site.recorded = None
    site.time += 6.0
    assert await site.status(secret="t" * 40) == 503
    assert await site.status() == 200


async def test_b28_nobody_waits_for_a_lookup_while_a_rotation_is_under_way() -> None:
    """Requests with the other secret are answered by what was looked up a moment ago; it is renewed beside them."""
    site = Site([Registration(digest(PATH.encode()), digest(b"t" * 40), Standing.RECORDED)])
    assert await site.status(secret="t" * 40) == 200
    # A look-up would fail now, and whoever waits for one gets 503.
    site.recorded = None
    assert await site.status(secret="t" * 40) == 200


async def test_the_owner_is_told_of_foreign_secrets_at_most_once_a_second() -> None:
    """Whoever knows the path can make us speak, but not often."""
    site = Site()
    for _ in range(10):
        assert await site.status(secret=None) == 401
    site.time += 1.0
    assert await site.status(secret=None) == 401
    assert len(site.foreign) == 2


async def test_b29_a_body_over_1_mib_is_413() -> None:
    """By its announced length, before it comes; and as soon as more has come."""
    site = Site()
    assert await site.status(body=[None], headers=[("content-length", str(MAX_BODY_BYTES + 1))]) == 413
    assert await site.status(body=[b"x" * MAX_BODY_BYTES, b"y", None]) == 413
    assert await site.status(body=b"x" * (MAX_BODY_BYTES + 1)) == 413
    assert site.stored == []


async def test_a_body_of_1_mib_is_taken() -> None:
    """The limit itself is within."""
    site = Site()
    padded = GOOD + b" " * (MAX_BODY_BYTES - len(GOOD))
    assert await site.status(body=padded, headers=[("content-length", str(MAX_BODY_BYTES))]) == 200


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b"{}", b'{"update_id": 5.5}', b'{"update_id": 1e99}', b"\xff"]
)
async def test_what_is_no_update_is_400(body: bytes) -> None:
    """Nothing is stored."""
    site = Site()
    assert await site.status(body=body) == 400
    assert site.stored == []


async def test_b29_a_body_that_does_not_come_is_408_and_ends_the_connection() -> None:
    """Within a limit for the whole body, not for each piece."""
    status, headers, body = await Site().request(body=[GOOD[:5], None])
    assert (status, headers["connection"], body) == (408, "close", b"")


async def test_a_client_that_goes_away_is_not_answered() -> None:
    """There is nobody; and half an update is none."""
    site = Site()
    assert (await site.request(body=[]))[0] == 0
    assert site.stored == []


async def test_a26_healthz_says_what_the_supervisor_said_last() -> None:
    """From memory, before and after; never 200 before the supervisor has said so."""
    site = Site(None)
    site.fault = "database away"
    status, _, body = await site.request("GET", "/healthz")
    assert (status, json.loads(body)) == (503, {"status": "failing", "role": "PASSIVE", "reason": "starting"})
    site.health.set("PASSIVE", None, ok=True)
    status, _, body = await site.request("GET", "/healthz")
    assert (status, json.loads(body)) == (200, {"status": "ok", "role": "PASSIVE"})
    site.owned_until = site.time + 1
    site.health.set("ACTIVE", "stopping", ok=False)
    status, _, body = await site.request("GET", "/healthz")
    assert (status, json.loads(body)) == (503, {"status": "failing", "role": "ACTIVE", "reason": "stopping"})


async def test_healthz_does_not_claim_ownership_past_the_deadline() -> None:
    """A frozen supervisor cannot say that it is over."""
    site = Site()
    site.health.set("ACTIVE", None, ok=True)
    # It was not told to lead, and would not know when the ownership ends.
    assert json.loads((await site.request("GET", "/healthz"))[2])["role"] == "PASSIVE"
    site.owned_until = site.time + 1
    assert json.loads((await site.request("GET", "/healthz"))[2])["role"] == "ACTIVE"
    site.time += 1
    assert json.loads((await site.request("GET", "/healthz"))[2])["role"] == "PASSIVE"


async def test_readyz_is_200_exactly_when_an_update_would_be_stored() -> None:
    """And names the reason otherwise."""
    site = Site()
    assert (await site.request("GET", "/readyz"))[0] == 200
    site.fault = "database away: connection refused"
    status, _, body = await site.request("GET", "/readyz")
    assert (status, json.loads(body)["reason"]) == (503, site.fault)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_may_use_head_and_nothing_else(path: str) -> None:
    """HEAD as GET but for the body, the rest 405."""
    site = Site()
    site.health.set("PASSIVE", None, ok=True)
    _, headers, body = await site.request("GET", path)
    assert headers == {"content-type": "application/json", "content-length": str(len(body))}
    assert await site.request("HEAD", path) == (200, headers, b"")
    status, headers, body = await site.request("POST", path)
    assert (status, headers["allow"], body) == (405, "GET, HEAD", b"")


async def test_neither_probes_nor_the_webhook_wait_for_fastapi() -> None:
    """It is made when something else is asked for, and once."""
    site = Site()
    for path in ("/healthz", "/readyz"):
        await site.request("GET", path)
    assert await site.status() == 200
    assert site.rests == 0
    for path in ("/.env", "/wp-login.php"):
        assert (await site.request("GET", path))[0] == 404
    assert site.rests == 1


async def test_what_could_not_be_imported_is_tried_again() -> None:
    """One failure must not be the answer to everybody for ever."""
    site = Site()
    site.failing_rests = 1
    with pytest.raises(ImportError):
        await site.request("GET", "/favicon.ico")
    assert (await site.request("GET", "/favicon.ico"))[0] == 404


async def test_a24_nothing_is_limited_by_address() -> None:
    """A burst from one address is a burst of Telegram's."""
    site = Site()
    forwarded = [("x-forwarded-for", "149.154.167.220")]
    statuses = {await site.status(headers=forwarded) for _ in range(300)}
    assert statuses == {200}
    assert len(site.stored) == 300


async def test_a_whole_post_by_our_own_registration_is_taken_at_once() -> None:
    """The rest of the table is left to `take`: nothing is stored, nobody is asked, nothing is told."""
    site = Site([Registration(digest(PATH.encode()), digest(b"t" * 40), Standing.RECORDED)])

    def taken(path: str = PATH, secret: str | None = SECRET, body: bytes = GOOD) -> bool:
        headers = [(b"host", b"x"), *([] if secret is None else [(SECRET_HEADER, secret.encode())])]
        return site.webhook.take_at_once(f"/webhook/{path}".encode(), headers, body, lambda reason: None)

    assert taken()
    assert site.stored == [(5, 3, GOOD)]
    for refused in (
        {"path": "q" * 40},
        {"path": PATH + "?x=1"},
        {"path": PATH + "/"},
        {"secret": "t" * 40},
        {"secret": None},
        {"body": b"[]"},
        {"body": b'{"update_id": "5"}'},
        {"body": b"\xff"},
    ):
        assert not taken(**refused), refused
    site.refusal = NotStored("database away")
    assert not taken()
    assert (len(site.stored), site.lookups, site.foreign) == (1, 0, [])
