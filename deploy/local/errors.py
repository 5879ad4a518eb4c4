"""What can go wrong on the way to a local system, each with what to do about it.

LocalSystemError
├── PostgresUnavailable   no usable Postgres binaries, or the server does not come up
├── WorkspaceInUse        another local system runs in the same folder
└── InstanceFailed        an instance, or the emulator, did not come up
"""


class LocalSystemError(Exception):
    """The local system cannot go on; the message says what was expected, what was found, and the remedy."""


class PostgresUnavailable(LocalSystemError):
    """Postgres cannot be found or started; the message carries the end of its log."""


class WorkspaceInUse(LocalSystemError):
    """The folder belongs to another local system that is running: stop that one, or use another folder."""


class InstanceFailed(LocalSystemError):
    """A process of the local system ended, or did not answer in time; its log file is named."""
