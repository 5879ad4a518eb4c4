"""The keys of the locks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.database.advisory import LOCK_CLASS, MIGRATION_CLASS, PROBE_CLASS, lock_key, oids_of

INT32 = range(-(2**31), 2**31)


@pytest.mark.parametrize(
    ("bot_id", "expected"),
    [
        (1, 1803989619),
        (123456789, 367177939),
        (2**31, 972608897),
        (2**52, 681588065),
        (2**63 - 1, -1286988752),
    ],
)
def test_a08_the_key_is_what_it_was_in_every_release(bot_id: int, expected: int) -> None:
    """A change would let old and new code own one bot at the same time: it is a breaking change."""
    assert LOCK_CLASS == 2003334006
    assert lock_key(bot_id) == (LOCK_CLASS, expected)


def test_the_probe_for_a_pooler_has_keys_of_its_own() -> None:
    """Neither a bot's lock nor the migrations' is ever tried for a probe."""
    assert PROBE_CLASS == LOCK_CLASS + 2
    assert MIGRATION_CLASS == LOCK_CLASS + 1


@given(st.integers(0, 2**63 - 1))
def test_a08_both_integers_fit_into_32_signed_bits(bot_id: int) -> None:
    """Whatever the id is: pg_advisory_lock(int, int) takes nothing else."""
    assert all(part in INT32 for part in lock_key(bot_id))


def test_a08_a_key_with_a_negative_integer_is_found_in_pg_locks() -> None:
    """There it stands as two oids, which have no sign."""
    assert oids_of((LOCK_CLASS, -1286988752)) == {"class": LOCK_CLASS, "object": 2**32 - 1286988752}
    assert oids_of((LOCK_CLASS, 1803989619)) == {"class": LOCK_CLASS, "object": 1803989619}
