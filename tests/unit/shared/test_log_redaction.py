"""Secrets are found in every form in which they turn up, and nothing else is lost."""

from __future__ import annotations

import json
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.redaction import Redactor

TOKEN = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"
PATH = "KvjAXMSnWXhW00lsZYB5Q9qyqWO8zWewNm8FFGGDkN4"
PASSWORD = "p@ss/wörd'\"\\ 1"
DSN = f"postgresql://bot:{quote(PASSWORD, safe='')}@db/bot"
redact = Redactor([TOKEN, PATH, PASSWORD, DSN])


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        TOKEN.partition(":")[2],
        f"https://api.telegram.org/bot{TOKEN}/getMe",
        f"https://api.telegram.org/bot{quote(TOKEN, safe='')}/getMe",
        f"https://api.telegram.org/bot{quote(TOKEN, safe='').replace('%3A', '%3a')}/getMe",
        f"/webhook/{PATH}",
        repr({"path": f"/webhook/{PATH}".encode()}),
        f"could not connect with {DSN}",
        f"password is {PASSWORD}",
        repr(PASSWORD),
        repr(PASSWORD.encode()),
        json.dumps({"x": PASSWORD}),
        json.dumps({"x": PASSWORD}, ensure_ascii=False),
        f"key={quote(PASSWORD, safe='')}",
        f"key={quote(PASSWORD, safe='').lower()}",
        f"key={quote_plus(PASSWORD)}",
    ],
)
def test_a21_a_known_secret_is_removed_in_every_form(text: str) -> None:
    """As it is, percent-encoded in either case, and as repr and JSON write it."""
    left = redact(f"before {text} after")
    assert left.startswith("before ")
    assert left.endswith(" after")
    assert "***" in left
    for secret in ("AAEhBO", PATH, "wörd", "w%C3%B6rd", "w%c3%b6rd", "w\\xc3", "w\\u00f6rd"):
        assert secret not in left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("bot 987654321:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB says", "bot *** says"),
        ("postgresql://u:hunter2@h/d", "postgresql://u:***@h/d"),
        ("redis://:x@h", "redis://:***@h"),
        ("host=h password=hunter2 dbname=d", "host=h password=*** dbname=d"),
        ("host=h password='it\\'s' dbname=d", "host=h password=*** dbname=d"),
        ("{'user': 'u', 'password': 'a'}", "{'user': 'u', 'password': ***}"),
        ('{"sslpassword": "a"}', '{"sslpassword": ***}'),
        ("PGPASSWORD=a", "PGPASSWORD=***"),
        ("?password=a&x=1", "?password=***&x=1"),
    ],
)
def test_a_secret_that_nobody_announced_is_known_by_its_form(text: str, left: str) -> None:
    """Tokens of other bots, passwords in URLs and after their name, however short."""
    assert Redactor([])(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-12 14:40:00 [LOCK] PostgreSQL advisory lock acquired",
        'password authentication failed for user "bot"',
        "https://host/webhook/*** (pending=0)",
        "http://127.0.0.1:8080/healthz",
        "update_id=123456789012345:3",
        "mail to someone@example.com: done",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """A log that cannot be read is turned off."""
    assert redact(text) == text


@pytest.mark.parametrize("password", ["a", "lock", "webhook", "1234", "x1"])
def test_a_short_or_common_password_does_not_eat_the_log(password: str) -> None:
    """It is hidden where its form tells it, and the lines that runbooks grep for stay whole."""
    short = Redactor([password])
    line = "[LOCK] lock held elsewhere, webhook x1 a1 pid=1234"
    assert short(line) == line
    assert short(f"://u:{password}@h password={password}") == "://u:***@h password=***"


def test_a_middling_password_is_hidden_where_it_stands_as_a_word() -> None:
    """Of 4 to 7 characters and more than one kind: nothing a log line says by itself."""
    assert Redactor(["s3cret"])("is s3cret, 's3cret' not s3crets") == "is ***, '***' not s3crets"


def test_the_short_token_of_an_emulator_is_hidden_wherever_it_occurs() -> None:
    """`123:abc` has too few characters for any other rule."""
    assert Redactor(["123:abc"])("/bot123:abc/getMe /bot123%3Aabc/") == "/bot***/getMe /bot***/"


def test_a_secret_that_begins_with_another_is_removed_whole() -> None:
    """The longer one is looked for first, in whatever order they are given."""
    for secrets in (["swordfish", "swordfish-and-more"], ["swordfish-and-more", "swordfish"]):
        assert Redactor(secrets)("a swordfish-and-more b swordfish c") == "a *** b *** c"


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_cutting_a_long_text_leaves_no_piece_of_a_secret(at: int) -> None:
    """Wherever the cut falls: also right through one."""
    text = "x" * at + TOKEN + "y" * at + PATH + "z" * 10_000
    left = redact.bounded(text, 100)
    assert len(left) < 500
    assert "more characters" in left
    assert not [n for n in range(30) if TOKEN[10 + n : 15 + n] in left or PATH[n : n + 5] in left]


@pytest.mark.parametrize("piece", ["a", "1", "://", "password=", "password ='", "%3", "1:", "://u:"])
def test_no_text_makes_the_search_quadratic(piece: str) -> None:
    """32 times the text may not take 32 times 32 as long: users of a bot write what they like."""

    def seconds(times: int) -> float:
        text = piece * times + " : = %"  # without one of these the search is not even begun
        best = 1e9
        for _ in range(3):
            began = time.thread_time()
            redact(text)
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(64_000) < 32 * 8 * max(seconds(2_000), 1e-5)


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=8, max_size=30),
    st.text(max_size=10),
    st.text(max_size=10),
)
def test_any_long_secret_is_gone_and_a_second_pass_changes_nothing(
    secret: str, before: str, after: str
) -> None:
    """Whatever its characters and surroundings; but for a secret that is made of masks."""
    remove = Redactor([secret])
    left = remove(before + secret + after)
    assert secret not in left or secret in "*" * 30
    assert remove(left) == left or "*" in secret
