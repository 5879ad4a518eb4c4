"""The control protocol under whatever may come: every message arrives as it was sent, anything else is a WireError."""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shared import wire
from shared.answers import Role
from shared.errors import WireError
from shared.wire import ToSupervisor, ToWorker

# As text in messages: everything but lone surrogates, which UTF-8 has no bytes for.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_of_type: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    str | None: st.none() | texts,
    tuple[str, ...]: st.lists(texts, max_size=4).map(tuple),
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    Role: st.sampled_from(get_args(Role)),
}


def _of_struct(kind: type[Any]) -> st.SearchStrategy[Any]:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **{name: _of_type[of] for name, of in fields.items()})


_of_type[float | None] = st.none() | _of_type[float]
_of_type |= {kind: _of_struct(kind) for kind in (wire.InboxDepth, wire.PoolUse)}
_of_type[wire.InboxDepth | None] = st.none() | _of_type[wire.InboxDepth]

to_worker: st.SearchStrategy[ToWorker] = st.one_of(*map(_of_struct, get_args(ToWorker)))
to_supervisor: st.SearchStrategy[ToSupervisor] = st.one_of(*map(_of_struct, get_args(ToSupervisor)))
DECODERS = (wire.decode_for_worker, wire.decode_for_supervisor)


def decoded(line: bytes) -> list[ToWorker | ToSupervisor]:
    """What either side makes of a line; any exception but WireError is a bug."""
    found: list[ToWorker | ToSupervisor] = []
    for decode in DECODERS:
        try:
            found.append(decode(line))
        except WireError:
            continue
    return found


def test_the_drawing_has_every_message() -> None:
    """Who reads the protocol's module begins with the drawing."""
    assert wire.__doc__ is not None
    drawn = re.findall(r"\w+", wire.__doc__.partition("Either side's")[0])
    messages = (*get_args(ToWorker), *get_args(ToSupervisor))
    assert {message.__name__ for message in messages} - set(drawn) == set()


@given(st.one_of(to_worker, to_supervisor))
def test_every_message_comes_out_of_its_line_as_it_went_in(message: ToWorker | ToSupervisor) -> None:
    """On the side that it is for, and on no other; in one line, whatever its texts are."""
    line = wire.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decoded(line[:-1]) == [message]


@given(st.text(st.characters(categories=["Cs", "L", "Cc"]), max_size=40))
@example("\ud800 and \udfff")
def test_a_reason_of_any_characters_reaches_the_other_side(reason: str) -> None:
    """A bot's exception can hold lone surrogates: they are lost, the message is not."""
    message = wire.decode_for_supervisor(wire.encode(wire.LeadFailed(reason)))
    assert message == wire.LeadFailed(reason.encode("utf-8", "replace").decode())


@given(st.lists(st.text(max_size=200), max_size=6), st.integers(1, 4000))
@example(["\x00" * 20_000], 1)
@example([""], 100_000)
@example(["\U0001f600" * 9000, "last"], 1)
def test_faults_fit_into_a_message_however_many_and_long_they_are(faults: list[str], times: int) -> None:
    """The first of them, whole where there is room; and what was left out is said."""
    told = wire.shortened(faults * times)
    wire.encode(wire.StartFailed(told))
    assert sum(len(fault) + 1 for fault in faults) * times > 8000 or told == tuple(faults * times)
    assert not faults or told[0][:100] == faults[0][:100]


# What is nearly a message: its parts, broken and put together anew.
_pieces = st.one_of(
    st.sampled_from([f'"type":"{kind.__name__}"' for kind in (*get_args(ToWorker), *get_args(ToSupervisor))]),
    st.sampled_from([*'{}[]:,"', "null", "1e999", "-1", "NaN", "9" * 5000, '"\\ud800"', '"deadline":']),
    texts,
)
_lines = st.one_of(
    st.binary(max_size=200),
    st.lists(_pieces, max_size=12).map(lambda pieces: "".join(pieces).encode()),
    st.builds(
        lambda message, at, byte: (
            (line := wire.encode(message))[: at % len(line)] + byte + line[at % len(line) + 1 :]
        ),
        st.one_of(to_worker, to_supervisor),
        st.integers(min_value=0),
        st.binary(max_size=2),
    ),
)


@settings(max_examples=500)
@given(_lines)
@example(b'{"x":' + b"[" * 60_000)
@example(b'{"type":"Exit","x":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001)
@example(b'{"type":"SetHealth","ok":false,"role":"PASSIVE","reason":"\xff"}')
@example(b'{"type":"Beat","completed":' + b"9" * 60_000 + b"}")
@example(b'{"type":"Extend","term":"\\ud800","deadline":1}')
def test_any_bytes_are_a_message_or_a_wire_error(line: bytes) -> None:
    """Never another exception; and a message is one that could have been sent."""
    for message in decoded(line):
        assert decoded(wire.encode(message)[:-1]) == [message]


class Stream(RuleBasedStateMachine):
    """A stream of lines that arrives in pieces as it likes; the model is the stream as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = wire.Lines()
        self.expected: list[bytes] = []  # up to the first that is too long
        self.is_spoilt = False
        self.under_way = b""
        self.arrived: list[bytes] = []
        self.is_over = False

    @rule(line=st.one_of(to_worker.map(wire.encode), st.binary(max_size=100).map(lambda line: line + b"\n")))
    def send(self, line: bytes) -> None:
        """A message, or any bytes: an empty line is one, too."""
        if not self.is_spoilt:
            self.expected += line.split(b"\n")[:-1]
        self.under_way += line

    @rule(length=st.integers(wire.MAX_LINE_BYTES - 2, wire.MAX_LINE_BYTES + 2))
    def send_a_long_one(self, length: int) -> None:
        """As long as a line may be, its newline included, or a little longer."""
        self.is_spoilt |= length > wire.MAX_LINE_BYTES
        self.send(b"x" * (length - 1) + b"\n")

    @rule(share=st.floats(0, 1))
    def arrive(self, share: float) -> None:
        """A piece that ends anywhere."""
        size = int(len(self.under_way) * share)
        self.take(self.under_way[:size])
        self.under_way = self.under_way[size:]

    def take(self, piece: bytes) -> None:
        if self.is_over:
            return
        try:
            for line in self.lines.end_in(piece):
                self.arrived.append(line)
        except WireError:
            assert self.is_spoilt, "a line that fits was refused"
            self.is_over = True

    @invariant()
    def nothing_is_lost_torn_or_made_up(self) -> None:
        """What has arrived is the beginning of what was sent."""
        assert self.arrived == self.expected[: len(self.arrived)]

    def teardown(self) -> None:
        """The rest arrives: every line does, until one that is too long."""
        self.take(self.under_way)
        assert self.arrived == self.expected
        assert self.is_over == self.is_spoilt


Stream.TestCase.settings = settings(max_examples=60, stateful_step_count=20)
TestStream = Stream.TestCase
