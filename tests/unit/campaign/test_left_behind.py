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
    worker_resident_kib=60_000,
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
        BEFORE,
        descriptors=24,
        worker_descriptors=46,
        resident_kib=75_000,
        worker_resident_kib=120_000,
        ours=164,
        starts=10_000,
    )
    more = {"terms": 500_000, "registrations": 500_000, "instances": 10_000_000, "inbox": 10_000_000}
    assert replace(grown, rows={**BEFORE.rows, "instances": 10_000}, bytes=more).compare(BEFORE) == []


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (replace(BEFORE, processes=22), "22 processes"),
        (replace(BEFORE, zombies=1), "1 zombies"),
        (replace(BEFORE, descriptors=25), "25 descriptors"),
        (replace(BEFORE, worker_descriptors=47), "47 descriptors of the worker"),
        (replace(BEFORE, resident_kib=75_001), "75001 KiB of memory"),
        (replace(BEFORE, worker_resident_kib=120_001), "120001 KiB of the worker's memory"),
        (replace(BEFORE, bytes={**BEFORE.bytes, "terms": 600_000}), "600000 bytes of terms"),
        (replace(BEFORE, bytes={**BEFORE.bytes, "registrations": 600_000}), "600000 bytes of registrations"),
        (replace(BEFORE, bytes={**BEFORE.bytes, "instances": 600_000}), "600000 bytes of instances"),
        (replace(BEFORE, ours=165), "165 descriptors of the campaign itself"),
        (replace(BEFORE, sessions=41), "41 database sessions"),
        (replace(BEFORE, locks=8), "8 advisory locks"),
        (replace(BEFORE, rows={**BEFORE.rows, "instances": 13}), "13 rows of instances, of 12 starts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_is_left_behind_is_told(after: Remains, says: str) -> None:
    """One thing at a time, and nothing else is said."""
    [found] = after.compare(BEFORE)
    assert found.startswith(says)
