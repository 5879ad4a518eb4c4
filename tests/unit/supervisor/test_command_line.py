"""What the commands take for what was asked: options by their whole names alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from supervisor.commands.entry import make_parser

NEEDED = {"show": ["1"], "retry": ["1"], "drop": ["1"]}
"""What a command needs beside its options."""


def leaves(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Each command in full, and the options that it has."""
    options = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from leaves(command, [*words, name])
            return
        options += [option for option in action.option_strings if option.startswith("--")]
    yield words, options


COMMANDS = list(leaves(make_parser(), []))


def test_every_command_is_looked_at() -> None:
    """Or nothing is tested below."""
    assert (["inbox", "drop"], ["--help", "--all-dead"]) in COMMANDS
    assert (["webhook", "delete"], ["--help", "--force"]) in COMMANDS


@pytest.mark.parametrize(("words", "options"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_a16_the_beginning_of_an_option_is_no_option(
    words: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`inbox drop --a`, or `webhook delete --f`, is refused, and nothing is done."""
    for option in options:
        for length in range(3, len(option)):
            # Alone, and beside what the command needs.
            for more in ([], NEEDED.get(words[-1], [])):
                with pytest.raises(SystemExit) as refused:
                    make_parser().parse_args([*words, *more, option[:length]])
                assert refused.value.code == 2, option[:length]
    capsys.readouterr()
