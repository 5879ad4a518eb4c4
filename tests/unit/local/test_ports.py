"""Which ports are given, and to whom."""

from __future__ import annotations

import pytest

from deploy.local import ports
from deploy.local.ports import free_port, keep_to_part


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that this process has, and what it was given, are put back."""
    monkeypatch.setattr(ports, "_range", ports._range)
    monkeypatch.setattr(ports, "_given", {})


@pytest.mark.parametrize("number", range(6))
def test_parts_are_apart_and_those_who_replace_others_get_theirs(number: int) -> None:
    """A test runner numbers the processes that replace others on and on."""
    keep_to_part(number, 4)
    size = (32000 - 15000) // 4
    lowest = 15000 + number % 4 * size
    assert all(lowest <= free_port() < lowest + size for _ in range(50))


def test_a_port_is_given_again_only_when_half_of_the_others_were() -> None:
    """It may be long until it is bound; and whoever asks for ever gets one."""
    keep_to_part(0, 170)  # a hundred ports
    given = [free_port() for _ in range(300)]
    for at in range(len(given)):
        assert given[at] not in given[max(0, at - 40) : at]
