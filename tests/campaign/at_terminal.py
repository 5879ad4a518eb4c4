"""Runs a command with a terminal as its standard input, in its own place: `python -m tests.campaign.at_terminal COMMAND...`."""

import os
import pty
import sys


def main() -> None:
    """Replaces itself; the terminal's other end stays open in the command, so that it lives as long."""
    other_end, terminal = pty.openpty()
    os.set_inheritable(other_end, True)
    os.dup2(terminal, 0)
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
