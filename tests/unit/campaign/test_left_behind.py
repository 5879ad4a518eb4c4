"""What is left behind is told, and what comes and goes is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.campaign.remains import TABLES, Remains

BEFORE = Remains(
    processes=21,
    zombies=0,
    descriptors=20,
    worker_descriptors=30,
    resident_kib=50_000,
    ours=100,
    sessions=40,
    locks=7,
    rows={**dict.fromkeys(TABLES, 1), "instances": 12},
    bytes=dict.fromkeys(TABLES, 8192),
    starts=12,
)


def test_the_same_again_is_nothing_left_behind() -> None:
    """Nor is what is still within its allowance."""
    assert BEFORE.compare(BEFORE) == []
    grown = replace(
        BEFORE, descriptors=24, worker_descriptors=46, resident_kib=75_000, ours=164, sessions=41, starts=40
    )
    assert replace(grown, rows={**BEFORE.rows, "instances": 40}).compare(BEFORE) == []


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (replace(BEFORE, processes=22), "22 processes"),
        (replace(BEFORE, zombies=1), "1 zombies"),
        (replace(BEFORE, descriptors=25), "25 descriptors"),
        (replace(BEFORE, worker_descriptors=47), "47 descriptors of the worker"),
        (replace(BEFORE, resident_kib=75_001), "75001 KiB of memory"),
        (replace(BEFORE, ours=165), "165 descriptors of the campaign itself"),
        (replace(BEFORE, sessions=42), "42 database sessions"),
        (replace(BEFORE, locks=8), "8 advisory locks"),
        (replace(BEFORE, rows={**BEFORE.rows, "instances": 13}), "13 rows of instances, of 12 starts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_is_left_behind_is_told(after: Remains, says: str) -> None:
    """One thing at a time, and nothing else is said."""
    [found] = after.compare(BEFORE)
    assert found.startswith(says)
