"""The worker's end of the control stream: whatever the pieces, and whatever comes after the last good line."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from shared import wire
from tests.unit.worker.test_control import Pair

MESSAGES: list[wire.ToWorker] = [
    wire.SetHealth(ok=False, role="PASSIVE", reason="no \n worker \U0001f600"),
    wire.Lead(term="a", deadline=1e12, recover_at=0.5),
    wire.Extend(term="a", deadline=1e13),
    wire.StopAccepting(linger_seconds=1.5),
    wire.EndTerm(drain_seconds=20.0),
    wire.Exit(),
]
BROKEN = (b"\n", b"{}\n", b'{"x":' + b"[" * 50_000 + b"\n", b'{"type":"\xff"}\n', b"x" * wire.MAX_LINE_BYTES)


def pieces_of(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    """The stream, cut at these places; they count modulo its length."""
    at = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    return [stream[begin:end] for begin, end in itertools.pairwise(at)]


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(MESSAGES), max_size=12),
    st.sampled_from([b"", *BROKEN]),
    st.lists(st.integers(min_value=0), max_size=12),
    st.booleans(),
)
def test_all_that_came_before_the_end_is_delivered_and_then_it_dies(
    messages: list[wire.ToWorker], end: bytes, cuts: list[int], is_attached_late: bool
) -> None:
    """In order, once, wherever the stream was cut; a line that is none ends the worker as the end of the file does."""
    stream = b"".join(map(wire.encode, messages)) + end

    async def play() -> None:
        pair = Pair()
        pair.control.start()
        try:
            if not is_attached_late:
                pair.control.attach(pair.deliver)
            for piece in pieces_of(stream, cuts) if stream else []:
                await asyncio.to_thread(pair.supervisor.sendall, piece)
            if not end:
                pair.supervisor.close()
            assert await pair.died()
            if is_attached_late:
                pair.control.attach(pair.deliver)
            await pair.wait_for(len(messages))
            assert pair.received == messages
        finally:
            pair.close()

    asyncio.run(play())
