"""One update, seen by two: what the emulator takes and would send, the worker stores, under the same number."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.local.emulator.control_messages import Inject, NewBot
from deploy.local.emulator.emulator import DEFAULT_TOKEN, Emulator
from deploy.local.emulator.errors import ControlError
from deploy.local.emulator.update_kinds import KINDS
from tests.odd_updates import INT64, UNKNOWN_KINDS, damaged, odd_contents
from webhook_worker.updates import UpdateKey, read_key


def inject(wish: Inject) -> tuple[int, bytes] | None:
    """The number and the bytes under which the emulator would send it; None: it was not taken."""
    emulator = Emulator(seed=1)
    emulator.control.add_bot(NewBot(DEFAULT_TOKEN))
    update_id = emulator.control.inject(wish).update_id
    waiting = emulator.bot().log.load(0, 10, 0.0)
    assert len(waiting) == (update_id is not None)
    return None if update_id is None else (update_id, waiting[0].body)


@settings(max_examples=200)
@given(odd_contents(), st.none() | INT64)
@example(b"{}", None)
@example(b'{"message":{"date":1e400,"chat":{"id":[[3]]}}}', 2**63 - 1)
def test_every_update_that_is_taken_is_stored_under_its_number(content: bytes, update_id: int | None) -> None:
    """Known kinds and unknown ones, NUL, halves of surrogate pairs, depth, and numbers of any size."""
    taken = inject(Inject(raw=content, update_id=update_id))
    if taken is None:
        return  # expired by its own date
    assert update_id in (None, taken[0])
    assert read_key(taken[1]).update_id == taken[0]


@settings(max_examples=200)
@given(damaged())
@example(b'{"message":{"date":NaN}}')
@example(b"[" * 100_000)
@example(b'{"a":1}x')
@example(b"\xff{}")
def test_what_is_no_update_is_refused_where_it_is_given(content: bytes) -> None:
    """And not later, by the worker, again and again; verbatim, it is sent as it stands."""
    try:
        taken = inject(Inject(raw=content))
    except ControlError:
        taken = None
    assert taken is None or _is_deep(content) or read_key(taken[1]).update_id == taken[0]
    verbatim = inject(Inject(raw=content, verbatim=True))
    assert verbatim is None or verbatim[1] == content


def _is_deep(content: bytes) -> bool:
    # The emulator cannot look there, and gives it to the worker as it is.
    return content.count(b"[") + content.count(b"{") > 100


@given(
    kind=st.sampled_from([*KINDS, *UNKNOWN_KINDS]),
    chat_id=st.integers(-(2**52), 2**52).filter(bool),
    text=st.text(max_size=20),
    is_raw=st.booleans(),
)
def test_of_a_chat_all_kinds_share_a_lane(kind: str, chat_id: int, text: str, is_raw: bool) -> None:
    """The worker needs no list of the kinds: it finds the chat in one that does not exist yet, as it does in a message."""
    update = {kind: {"chat": {"id": chat_id, "title": text}, "from": {"id": 7}}}
    raw = json.dumps(update).encode()
    taken = inject(Inject(raw=raw) if is_raw else Inject(update))
    if taken is None:
        # Not in the default of allowed_updates: a kind that the server knows.
        assert kind in KINDS
        return
    assert read_key(taken[1]) == UpdateKey(taken[0], chat_id)


@given(st.one_of(st.integers(max_value=-(2**63) - 1), st.integers(min_value=2**63)))
def test_a_number_that_no_server_gives_is_refused(update_id: int) -> None:
    """Outside int64 the worker would answer 400, for a day."""
    with pytest.raises(ControlError, match="update_id"):
        inject(Inject({"message": {}}, update_id=update_id))
