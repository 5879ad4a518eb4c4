"""What the bot tells the dispatch, and what handlers import."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_worker import RetryUpdate
from webhook_worker.outcomes import attempt, storable


@pytest.mark.parametrize("seconds", ["soon", timedelta(seconds=5), [1]])
def test_a_time_that_is_none_is_the_handlers_error(seconds: Any) -> None:
    """Raised where it was written, so that the update fails with its traceback, and nothing else does."""
    with pytest.raises(
        TypeError, match=r"RetryUpdate: retry_after_seconds is .*; expected a number of seconds"
    ):
        RetryUpdate("later", retry_after_seconds=seconds)


def test_outside_of_an_update_there_is_no_attempt() -> None:
    """0, in whichever thread: helpers shared by jobs and handlers need no case of their own."""
    assert attempt() == 0
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(attempt).result() == 0


def test_importing_the_package_is_cheap() -> None:
    """The worker answers signals before anything slow is imported; names are fetched when they are asked for."""
    script = (
        "import sys, webhook_worker;"
        "assert not {'telegram', 'httpx', 'psycopg', 'asyncio'} & set(sys.modules), sorted(sys.modules);"
        "from webhook_worker import RetryUpdate, attempt;"
        "assert attempt() == 0 and issubclass(RetryUpdate, Exception);"
        "assert not hasattr(webhook_worker, 'anything_else')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@given(st.text(alphabet=st.characters(), max_size=200))
def test_any_text_becomes_storable(text: str) -> None:
    """Postgres refuses NUL and lone surrogates: one such text would fail its whole batch for ever."""
    stored = storable(text, 10_000)
    assert "\x00" not in stored
    stored.encode("utf-8")


@pytest.mark.parametrize("most_characters", [101, 500, 40_000])
def test_a_long_text_keeps_its_begin_and_its_end(most_characters: int) -> None:
    """Where it began and what it was."""
    stored = storable("a" * 100_000 + "ValueError", most_characters)
    assert stored.startswith("aaa")
    assert stored.endswith("ValueError")
    assert len(stored) <= most_characters
    left_out = re.search(r"a\n\.\.\. (\d+) characters left out \.\.\.\na", stored)
    assert left_out is not None
    assert int(left_out[1]) + len(stored) - len(left_out[0]) + 2 == 100_010
    assert storable("a" * most_characters, most_characters) == "a" * most_characters
    assert storable("short \ud800", most_characters) == "short \\ud800"
