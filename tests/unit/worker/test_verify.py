"""Whose request it is, by path and secret."""

import hashlib

import pytest

from shared.secret import digest
from webhook_worker.verify import (
    Match,
    Registration,
    Standing,
    match,
    may_be_secret,
    registration_of,
    secret_path,
)

PATH, SECRET = "p" * 40, "s" * 40
OWN = registration_of(PATH, SECRET)


def recorded(path: str, secret: str, standing: Standing) -> Registration:
    return Registration(digest(path.encode()), digest(secret.encode()), standing)


@pytest.mark.parametrize(
    ("raw_path", "expected"),
    [
        (b"/webhook/" + b"a" * 16, b"a" * 16),
        (b"/webhook/" + b"A-_9" * 32, b"A-_9" * 32),
        (b"/webhook/" + b"a" * 15, None),
        (b"/webhook/" + b"a" * 129, None),
        (b"/webhook/" + b"a" * 16 + b"/", None),
        (b"/webhook/" + b"a" * 16 + b"\n", None),
        (b"/webhook/" + b"a" * 15 + b"%61", None),
        (b"/webhook/../" + b"a" * 16, None),
        (b"//webhook/" + b"a" * 16, None),
        (b"/webhook/", None),
        (b"/", None),
    ],
)
def test_only_what_has_the_form_of_a_secret_path_is_one(raw_path: bytes, expected: bytes | None) -> None:
    """Everything else is refused without hashing or looking up."""
    assert secret_path(raw_path) == expected


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        (None, False),
        (b"", False),
        (b"a" * 15, False),
        (b"a" * 16, True),
        (b"a" * 256, True),
        (b"a" * 257, False),
    ]
    + [(b"a" * 16 + odd, False) for odd in (b"\n", b" ", b"\xff", b".")],
)
def test_only_what_has_the_form_of_a_secret_may_be_one(secret: bytes | None, expected: bool) -> None:
    """Nothing is looked up for anything else."""
    assert may_be_secret(secret) is expected


def test_hashes_are_what_the_schema_says() -> None:
    """The supervisor writes them, the worker compares them."""
    assert registration_of(PATH, SECRET).path_hash == hashlib.sha256(PATH.encode()).digest()
    assert registration_of(PATH, SECRET).secret_hash == hashlib.sha256(SECRET.encode()).digest()


@pytest.mark.parametrize(
    ("path", "secret", "found"),
    [
        ("p" * 40, "s" * 40, Match.ACCEPTED),
        ("p" * 40, "s" * 39, Match.SECRET_WRONG),
        ("p" * 40, "s" * 39 + "S", Match.SECRET_WRONG),
        ("p" * 40, None, Match.SECRET_WRONG),
        ("p" * 40, "", Match.SECRET_WRONG),
        ("q" * 40, "s" * 40, Match.PATH_UNKNOWN),
        ("q" * 40, None, Match.PATH_UNKNOWN),
        # Rotated: another secret at the same path, and another path.
        ("p" * 40, "t" * 40, Match.ACCEPTED_OTHER),
        ("r" * 40, "u" * 40, Match.ACCEPTED_OTHER),
        ("p" * 40, "v" * 40, Match.ACCEPTED_PREVIOUS),
        # A path and a secret belong together.
        ("r" * 40, "s" * 40, Match.SECRET_WRONG),
        ("p" * 40, "u" * 40, Match.SECRET_WRONG),
    ],
)
def test_a14_b28_path_and_secret_are_right_only_together(path: str, secret: str | None, found: Match) -> None:
    """Our own, recorded and superseded registrations are accepted as pairs; nothing else is."""
    known = [
        OWN,
        recorded("p" * 40, "t" * 40, Standing.RECORDED),
        recorded("r" * 40, "u" * 40, Standing.RECORDED),
        recorded("p" * 40, "v" * 40, Standing.SUPERSEDED),
    ]
    for order in (known, known[::-1]):
        assert match(order, path.encode(), None if secret is None else secret.encode()) is found


def test_nothing_is_accepted_where_nothing_is_known() -> None:
    """No registration, no path."""
    assert match([], PATH.encode(), SECRET.encode()) is Match.PATH_UNKNOWN
