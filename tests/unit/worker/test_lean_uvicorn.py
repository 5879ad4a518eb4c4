"""A worker has uvicorn without its command line, and a bot has all of uvicorn."""

import subprocess
import sys

import pytest

_LEFT_OUT = ("click", "uvicorn.supervisors")
_BEGIN = f"""
import sys
import webhook_worker.server
assert not set(sys.modules) & {set(_LEFT_OUT)!r}, sorted(sys.modules)
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("", id="nothing"),
        pytest.param(
            "import uvicorn, uvicorn.server; assert uvicorn.Server is uvicorn.server.Server", id="Server"
        ),
        pytest.param(
            """
import uvicorn
try:
    uvicorn.run("no_such_module:app", port=0, log_level="critical")
except SystemExit as exc:
    assert exc.code == 3, exc.code
else:
    raise AssertionError("it returned")
from uvicorn.main import run
assert uvicorn.run is run
""",
            id="run",
        ),
        pytest.param(
            """
import click, uvicorn
uvicorn.main(["--help"], standalone_mode=False)
assert isinstance(uvicorn.main, click.Command)
""",
            id="main",
        ),
        pytest.param(
            """
from uvicorn.main import STARTUP_FAILURE, print_version
import click, uvicorn.main
assert STARTUP_FAILURE == 3
assert isinstance(uvicorn.main, click.Command)
""",
            id="anything else",
        ),
        pytest.param(
            """
import inspect
inspect.stack()  # looks at every module's file
assert not hasattr(sys.modules["uvicorn.main"], "__file__")
assert "click" not in sys.modules
""",
            id="looked at by others",
        ),
    ],
)
def test_a_worker_leaves_out_the_command_line_and_a_bot_has_it(script: str) -> None:
    """In an interpreter of its own: here the whole of it may have been imported."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_where_all_of_it_is_imported_nothing_takes_its_place() -> None:
    script = (
        "import sys, uvicorn; own = sys.modules['uvicorn.main']; import webhook_worker.server;"
        " assert sys.modules['uvicorn.main'] is own; assert own.__file__"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
