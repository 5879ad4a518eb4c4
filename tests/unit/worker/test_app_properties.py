"""Any request at all against the table of INTERFACE.md, which stands here a second time, as an oracle."""

from __future__ import annotations

import asyncio
import itertools
import re
import string
from collections.abc import Sequence
from urllib.parse import unquote

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from shared.secret import digest
from tests.odd_updates import damaged, odd_updates
from tests.unit.worker.test_app import GOOD, PATH, SECRET, Site
from tests.unit.worker.test_updates_properties import key_of
from webhook_worker.ingest import NotStored
from webhook_worker.updates import MAX_BODY_BYTES
from webhook_worker.verify import Registration, Standing, match, may_be_secret, secret_path

OTHER_PATH, OTHER_SECRET = "o" * 16, "t" * 256  # what another instance has recorded
UNKNOWN = "u" * 40


def _encoded(path: str, at: Sequence[int]) -> str:
    return "".join(f"%{ord(c):02x}" if n in at else c for n, c in enumerate(path))


_letters = string.ascii_letters + string.digits + "_-"
paths = st.one_of(
    st.sampled_from([PATH, OTHER_PATH, UNKNOWN]).map("/webhook/{}".format),
    st.text(_letters + "%./?#;\\\xe4", max_size=140).map("/webhook/{}".format),
    st.builds(
        "/webhook/{}{}".format, st.sampled_from([PATH, OTHER_PATH]), st.text(_letters + "/%\n", max_size=2)
    ),
    # Any character of a right one may be encoded, a slash too.
    st.lists(st.integers(0, len(PATH) + 8), max_size=3).map(lambda at: _encoded(f"/webhook/{PATH}", at)),
    st.text(max_size=20).map("/{}".format),
    st.sampled_from(
        ["/healthz", "/readyz", "/status", "/metrics", "/webhook", "/webhooks/x", "//webhook/" + PATH]
    ),
)
secrets = st.one_of(
    st.sampled_from([SECRET, OTHER_SECRET, UNKNOWN, SECRET + "s", SECRET[:-1], SECRET.upper(), ""]),
    st.text(st.characters(codec="latin-1"), max_size=20),
    st.none(),
)
methods = st.one_of(
    st.sampled_from(
        ["POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE", "PATCH", "post"]
    ),
    st.text(string.ascii_uppercase, min_size=1, max_size=12),
)
bodies = st.one_of(
    odd_updates().map(lambda update: update.body),
    damaged(),
    st.binary(max_size=40),
    # By a number, since hypothesis writes what is sampled from into the name of the strategy.
    st.integers(-1, 1).map(lambda more: GOOD + b" " * (MAX_BODY_BYTES - len(GOOD) + more)),
)


def expected(
    method: str, path: str, secret: str | None, body: bytes, *, is_away: bool, is_full: bool
) -> set[int]:
    """What INTERFACE.md's table says, row by row; of /healthz and /readyz no more than that they exist. `path`: decoded."""
    if path in ("/healthz", "/readyz"):
        return {200, 503} if method in ("GET", "HEAD") else {405}
    word = re.fullmatch(r"/webhook/([A-Za-z0-9_-]+)", path)
    if word is None or word[1] not in (PATH, OTHER_PATH):
        # Another instance may have recorded it a moment ago, which only a look-up tells; and only Telegram causes one.
        may_be_known = word is not None and 16 <= len(word[1]) <= 128 and method == "POST"
        return {503} if may_be_known and is_away and _is_secret(secret) else {404}
    if method != "POST":
        return {405} if word[1] == PATH else {404}  # one that is only recorded is not looked up for this
    if (word[1], secret) != (PATH, SECRET):
        if is_away:
            return {503} if _is_secret(secret) else {404 if word[1] == OTHER_PATH else 401}
        if (word[1], secret) != (OTHER_PATH, OTHER_SECRET):
            return {401} if word[1] == PATH or _is_secret(secret) else {404}
    if len(body) > MAX_BODY_BYTES:
        return {413}
    if key_of(body) is None:
        return {400}
    return {503} if is_full else {200}


def _is_secret(secret: str | None) -> bool:
    return secret is not None and re.fullmatch(r"[A-Za-z0-9_-]{16,256}", secret) is not None


def cut(body: bytes, at: Sequence[int]) -> list[bytes]:
    """The body in pieces."""
    ends = [0, *sorted(cut % (len(body) + 1) for cut in at), len(body)]
    return [body[begin:end] for begin, end in itertools.pairwise(ends)]


@settings(max_examples=200)
@given(
    odd=st.sets(st.sampled_from(["method", "path", "secret", "body"]), max_size=2),
    method=methods,
    path=paths,
    secret=secrets,
    body=bodies,
    cuts=st.lists(st.integers(min_value=0), max_size=4),
    is_away=st.booleans(),
    is_full=st.booleans(),
    says_length=st.booleans(),
)
@example(
    odd={"path"},
    method="POST",
    path=_encoded(f"/webhook/{PATH}", [3, 12]),
    secret=SECRET,
    body=GOOD,
    cuts=[],
    is_away=False,
    is_full=False,
    says_length=True,
)
def test_b29_any_request_gets_the_status_of_the_table_and_nothing_else(
    odd: set[str],
    method: str,
    path: str,
    secret: str | None,
    body: bytes,
    cuts: list[int],
    is_away: bool,
    is_full: bool,
    says_length: bool,
) -> None:
    """Whatever it holds it is answered, with no more than a status, and stored as it came exactly if that is 200."""
    # Independently odd, nearly every request would be refused for its path alone.
    method = method if "method" in odd else "POST"
    path = path if "path" in odd else f"/webhook/{PATH}"
    secret = secret if "secret" in odd else SECRET
    body = body if "body" in odd else GOOD
    recorded = [Registration(digest(OTHER_PATH.encode()), digest(OTHER_SECRET.encode()), Standing.RECORDED)]

    async def ask() -> None:
        site = Site(None if is_away else recorded)
        site.refusal = NotStored("the buffer is full") if is_full else None
        headers = [("content-length", str(len(body)))] if says_length else []
        status, _, answered = await site.request(
            method, path, secret=secret, body=cut(body, cuts), headers=headers
        )
        meant = unquote(path)
        assert status in expected(method, meant, secret, body, is_away=is_away, is_full=is_full)
        if meant not in ("/healthz", "/readyz"):
            assert answered == b""
        key = key_of(body)
        stored = [] if status != 200 or key is None else [(key.update_id, key.lane, body)]
        assert site.stored == ([] if meant in ("/healthz", "/readyz") else stored)

    asyncio.run(ask())


@given(
    path=st.binary(max_size=160) | st.binary(max_size=3).map(lambda end: b"/webhook/" + PATH.encode() + end),
    secret=st.none() | st.binary(max_size=300),
)
def test_no_bytes_are_a_path_and_a_secret_but_the_right_ones(path: bytes, secret: bytes | None) -> None:
    """The forms are checked before anything is compared, and comparing takes any bytes."""
    assume((path, secret) != (PATH.encode(), SECRET.encode()))
    own = [Registration(digest(PATH.encode()), digest(SECRET.encode()), Standing.OWN)]
    assert match(own, path, secret).value == ("secret wrong" if path == PATH.encode() else "path unknown")
    assert may_be_secret(secret) == (secret is not None and _is_secret(secret.decode("latin-1")))
    found = secret_path(path)
    assert found is None or path == b"/webhook/" + found
