"""What is decided before a server is started."""

from pathlib import Path

import pytest

from deploy.local.errors import PostgresUnavailable
from deploy.local.postgres_binaries import find_binaries
from deploy.local.postgres_process import Privilege, choose_privilege, end_previous_server


@pytest.mark.parametrize(
    ("uid", "has_name", "namespace_works", "expected"),
    [
        (1000, True, False, Privilege.AS_IS),
        (1000, True, True, Privilege.AS_IS),
        (0, True, True, Privilege.NAMESPACE),
        (0, False, True, Privilege.NAMESPACE),
        (0, True, False, Privilege.DROP),
        (1234, False, True, Privilege.NAMESPACE),
    ],
)
def test_postgres_never_runs_as_root(
    uid: int, has_name: bool, namespace_works: bool, expected: Privilege
) -> None:
    """Each kind of user gets the first way that works for it."""
    assert choose_privilege(uid=uid, has_name=has_name, namespace_works=namespace_works) is expected


def test_a_uid_without_a_name_and_without_namespaces_is_told_why() -> None:
    """There is no way for it, and the message names the uid."""
    with pytest.raises(PostgresUnavailable, match="uid 1234"):
        choose_privilege(uid=1234, has_name=False, namespace_works=False)


def test_a_folder_without_binaries_is_named(tmp_path: Path) -> None:
    """A wrong LOCAL_POSTGRES is reported with the folder and the program that is missing."""
    with pytest.raises(PostgresUnavailable, match=f"no executable initdb in {tmp_path}"):
        find_binaries(str(tmp_path))


@pytest.mark.parametrize("text", ["1\n/elsewhere\n", "4194999\n", "", "nonsense\n"])
def test_a_stale_pid_file_harms_nobody(tmp_path: Path, text: str) -> None:
    """The pid in it may belong to somebody else by now - here init - or to nobody: nothing is signalled."""
    pid_file = tmp_path / "postmaster.pid"
    pid_file.write_text(text)
    end_previous_server(tmp_path)
    assert not pid_file.exists() or not text.strip().isdigit()
