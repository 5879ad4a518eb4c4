"""What is printed comes out as it was, at once and whole, without secrets; and whoever prints never waits."""

from __future__ import annotations

import gc
import io
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from shared.line_writer import LineWriter
from shared.printed_lines import MAX_LINE_CHARACTERS, PrintedLines
from shared.redaction import Redactor
from tests.unit.shared.test_log_process import BEGIN, DSN, LIMIT_SECONDS, PASSWORD, PATH, TOKEN, run
from tests.unit.shared.test_log_writer import read_until

SECRET = "correct-horse-battery"


class Scene:
    """A stream into a pipe, as `sys.stdout` is one."""

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe()
        self._writer = LineWriter(self.fd)
        self.printed = PrintedLines(self.fd, self._writer, Redactor([SECRET]), name="<stdout>")
        self.stream = self.printed.text()

    def said(self) -> bytes:
        """What has come out so far, and not been asked for yet."""
        found = b""
        done = False
        while not done or select.select([self.reader], [], [], 0)[0]:
            done = self._writer.flush(0.01) or done
            while select.select([self.reader], [], [], 0)[0]:
                found += os.read(self.reader, 65536)
        return found

    def close(self) -> None:
        """Nothing is written any more."""
        self.said()
        os.close(self.reader)
        os.close(self.fd)


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Nothing has been printed yet."""
    scene = Scene()
    yield scene
    scene.close()


def test_a_line_comes_at_once_and_a_part_of_one_with_its_end(scene: Scene) -> None:
    """Flushed or not: a line of the log would come between."""
    print("one\ntwo", file=scene.stream)
    assert scene.said() == b"one\ntwo\n"
    print("three", end="", file=scene.stream, flush=True)
    assert scene.said() == b""
    print(" and", "four\n\nfive", end="", file=scene.stream)
    assert scene.said() == b"three and four\n\n"
    scene.printed.end()
    scene.printed.end()
    assert scene.said() == b"five\n"


def test_a21_a_secret_is_masked_in_whatever_pieces_it_is_printed(scene: Scene) -> None:
    """And in bytes, and in what only looks like one."""
    for piece in (SECRET[:5], SECRET[5:9], SECRET[9:] + "\n"):
        scene.stream.write(piece)
        scene.stream.flush()
    scene.stream.buffer.write(b"\xff" + SECRET.encode() + b"\xfe\n")
    print("password=hunter2", file=scene.stream)
    assert scene.said() == b"***\n\xff***\xfe\npassword=***\n"


@pytest.mark.parametrize("piece", [1000, 10 * MAX_LINE_CHARACTERS])
def test_a_line_without_an_end_goes_in_pieces_and_no_secret_is_cut(scene: Scene, piece: int) -> None:
    """Whatever the memory: what is kept is little more than one piece."""
    text = f"{'x' * 997}{SECRET}" * 400
    for at in range(0, len(text), piece):
        scene.stream.write(text[at : at + piece])
        assert sum(map(len, scene.printed._begun)) <= MAX_LINE_CHARACTERS + 1000
    lines = scene.said().split(b"\n")
    assert len(lines) > 400 * 1000 // MAX_LINE_CHARACTERS
    assert max(map(len, lines)) <= MAX_LINE_CHARACTERS
    scene.stream.write("\n")
    assert b"".join([*lines, *scene.said().split(b"\n")]) == (b"x" * 997 + b"***") * 400


def test_it_is_a_stream_as_code_expects_one(scene: Scene) -> None:
    """For libraries that ask, and for those that write bytes, wrap it, or give it to another program."""
    assert scene.stream.encoding == "utf-8"
    assert scene.stream.name == "<stdout>"
    assert not scene.stream.line_buffering  # it would be flushed, and waited for, at each newline
    assert scene.stream.fileno() == scene.fd
    assert scene.stream.buffer is scene.printed
    assert scene.stream.writable()
    assert not scene.stream.readable()
    assert not scene.stream.isatty()
    assert scene.printed.write(memoryview(b"bytes\n")) == 6
    print("é", "\ud800", file=scene.stream)
    io.TextIOWrapper(scene.stream.buffer, encoding="latin-1", write_through=True).write("é\n")
    assert scene.said() == b"bytes\n\xc3\xa9 \\ud800\n\xe9\n"


def test_isatty_says_what_the_descriptor_is() -> None:
    """Colours are for people."""
    leader, terminal = os.openpty()
    assert PrintedLines(terminal, LineWriter(terminal), Redactor([])).text().isatty()
    os.close(leader)
    os.close(terminal)


@pytest.mark.skipif(sys.platform != "linux", reason="how a terminal ends lines is Linux's")
def test_a_line_that_is_overwritten_goes_at_once_at_a_terminal(scene: Scene) -> None:
    """A progress bar is for who watches; in a log it is one line, and the log's next one does not stand behind it."""
    leader, terminal = os.openpty()
    stream = PrintedLines(terminal, LineWriter(terminal), Redactor([SECRET])).text()
    print("10%", end="\r", file=stream)
    print(f"\r20% {SECRET}\r30%", end="", file=stream)
    assert read_until(leader, b"***\r") == b"10%\r\r20% ***\r"
    print(file=stream)
    assert read_until(leader, b"\n") == b"30%\r\n"
    os.close(leader)
    os.close(terminal)
    print("10%", end="\r", file=scene.stream)
    assert scene.said() == b""
    print("20%", file=scene.stream)
    assert scene.said() == b"10%\r20%\n"


def test_a_stream_that_is_closed_writes_what_was_begun_and_leaves_the_descriptor_open(scene: Scene) -> None:
    """The log goes there too."""
    scene.stream.write("begun")
    scene.stream.close()
    scene.printed.close()
    with pytest.raises(ValueError, match="closed"):
        scene.printed.write(b"more")
    assert scene.said() == b"begun\n"
    os.write(scene.fd, b"open\n")
    assert scene.said() == b"open\n"


def said_by_three(scene: Scene, say: Callable[[str], None]) -> bytes:
    """What comes out of three threads that each say a letter of their own."""
    threads = [threading.Thread(target=say, args=(letter,)) for letter in "abc"]
    for thread in threads:
        thread.start()
    said = b""
    while any(thread.is_alive() for thread in threads):
        said += scene.said()
    return said + scene.said()


def test_lines_of_many_threads_stay_whole(scene: Scene) -> None:
    """Each is one write, as it is where somebody ends it himself."""

    def say(letter: str) -> None:
        for _ in range(100):
            scene.stream.write(letter * 5000 + "\n")

    assert sorted(said_by_three(scene, say).split()) == sorted(
        letter * 5000 for letter in (b"a", b"b", b"c") for _ in range(100)
    )


def test_the_lines_of_one_print_keep_their_order_beside_those_of_others(scene: Scene) -> None:
    """What comes between is whole lines."""

    def say(letter: str) -> None:
        for number in range(0, 300, 3):
            scene.stream.write("".join(f"{letter} {number + each}\n" for each in range(3)))

    lines = said_by_three(scene, say).decode().splitlines()
    for letter in "abc":
        assert [line for line in lines if line[0] == letter] == [
            f"{letter} {number}" for number in range(300)
        ]


def test_a_print_in_the_middle_of_a_put_does_not_lock_up_with_one_that_puts() -> None:
    """A signal's handler prints while its thread holds the writer's lock, which another thread's print waits for."""
    printing = threading.Event()
    holding = threading.Event()

    class Interrupted(LineWriter):
        def put(self, line: bytes) -> None:
            if line == b"other\n":
                printing.set()
            elif line == b"logged\n":
                with self._lock:
                    holding.set()
                    assert printing.wait(LIMIT_SECONDS)
                    print("handler", file=stream, flush=True)
            super().put(line)

    reader, fd = os.pipe()
    writer = Interrupted(fd)
    stream = PrintedLines(fd, writer, Redactor([])).text()
    logging = threading.Thread(target=writer.put, args=(b"logged\n",), daemon=True)
    logging.start()
    assert holding.wait(LIMIT_SECONDS)
    other = threading.Thread(target=lambda: print("other", file=stream), daemon=True)
    other.start()
    for thread in (logging, other):
        thread.join(LIMIT_SECONDS)
        assert not thread.is_alive()
    assert writer.flush(LIMIT_SECONDS)
    assert sorted(os.read(reader, 1000).split()) == [b"handler", b"logged", b"other"]
    os.close(reader)
    os.close(fd)


def test_a_print_within_a_print_loses_nothing(scene: Scene) -> None:
    """A finalizer may print, whenever the garbage collector likes."""

    class Loud:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            print("inner\nand more", end="", file=scene.stream)

    class Collecting(Redactor):
        def __call__(self, text: str) -> str:
            gc.collect()
            return super().__call__(text)

    scene.printed._redactor = Collecting([])
    Loud()
    print("outer\nbegun", end="", file=scene.stream)
    assert scene.said() == b"inner\nouter\n"
    print(file=scene.stream)
    assert scene.said() == b"begunand more\n"


# -------------------------------------------------------------------------------------------------------- of a process

TAKEN = "log.take_prints()\n"
# Far more than pipe and queue hold, from within an event loop.
TALKATIVE = """
async def main():
    for number in range(200):
        print("x" * 100_000)
        await asyncio.sleep(0)
    sys.stderr.write("lived\\n")
asyncio.run(main())
"""


def test_b15_a_process_that_prints_to_nobody_lives_and_ends() -> None:
    """And what it says on standard error, which is somebody else's pipe, comes through."""
    command = [sys.executable, "-c", BEGIN + TAKEN + TALKATIVE, "json", "INFO"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.read() == b"lived\n"  # at the end of the process, with stdout still unread
        assert process.wait(LIMIT_SECONDS) == 0
        assert process.stdout.read(10) == b"x" * 10


@pytest.mark.parametrize("end", ["os._exit(3)", "os.abort()", "os.kill(os.getpid(), 9)"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_last_words_that_were_flushed_are_written_before_a_crash(stream: str, end: str) -> None:
    """With all that was printed before them."""
    script = f"""
import os
log._writer._brief_flush_seconds = log._error_writer._brief_flush_seconds = {LIMIT_SECONDS}
for number in range(100):
    print("x" * 4095, file=sys.{stream})
print("last", file=sys.{stream}, flush=True)
{end}
"""
    done = run(TAKEN + script)
    assert done.returncode != 0
    assert getattr(done, stream) == ("x" * 4095 + "\n") * 100 + "last\n"


def test_a21_neither_stream_shows_a_secret_and_what_was_begun_comes_at_the_end() -> None:
    """Also to whoever took hold of the interpreter's own streams, or puts them back."""
    done = run(
        TAKEN
        + """
print(TOKEN, PATH)
print(PASSWORD, DSN, file=sys.stderr)
print(TOKEN, file=sys.__stdout__)
print("last of", PASSWORD, end="", file=sys.__stderr__)
print("last", end="")
"""
    )
    assert (done.stdout, done.stderr) == ("*** ***\n***\nlast\n", "*** ***\nlast of ***\n")
    assert not [secret for secret in (TOKEN, PATH, PASSWORD, DSN) if secret in done.stdout + done.stderr]


def test_both_streams_of_one_pipe_keep_their_order() -> None:
    """And that of the log."""
    script = """
for number in range(100):
    print(number)
    print(number, file=sys.stderr)
    logging.warning(number)
"""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + TAKEN + script, "text", "INFO"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=True,
    )
    said = [line.split()[3 if "[ROOT]" in line else 0] for line in done.stdout.splitlines()]
    assert said == [str(number) for number in range(100) for _ in range(3)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that are forked")
def test_what_a_forked_process_prints_and_logs_comes_out_once() -> None:
    """Its parent's thread is not there; a bot may use multiprocessing. It may be forked while that thread holds the lock."""
    script = """
import multiprocessing
def child():
    print("printed by the child")
    logging.warning("logged by the child")
    print("begun by the child", end="")
print("begun by the parent", end="")
with log._writer._lock:
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
process.join()
assert process.exitcode == 0
"""
    done = run(TAKEN + script)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line for line in said if "log" not in line] == [
        "printed by the child",
        "begun by the childbegun by the parent",
    ]
    assert len(said) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that are forked")
def test_what_a_forked_process_prints_comes_out_as_it_was_printed() -> None:
    """Nothing is added where a piece ends, and what is flushed is there, whatever the process's end."""
    script = """
import os, warnings
warnings.simplefilter("ignore")  # of Python 3.12 and later, for whoever forks beside threads
pid = os.fork()
if pid == 0:
    print("a\\nb")
    print("c\\r\\nd", end="\\n\\n")
    print(".", end="", flush=True)
    print(".", end="", flush=True)
    print("50%", end="\\r", flush=True)
    print("x" * 200_000)
    print(TOKEN, end="", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    command = [sys.executable, "-c", BEGIN + TAKEN + script, "json", "INFO"]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_SECONDS, check=True)
    assert done.stdout.replace(b"x" * 200_000, b"(long)") == b"a\nb\nc\r\nd\n\n..50%\r(long)\n***"


def test_a_process_without_standard_streams_has_none_afterwards() -> None:
    """As the interpreter has it: None."""
    script = BEGIN + TAKEN + "assert sys.stdout is None and sys.stderr is None; print('nowhere')"
    command = [sys.executable, "-c", script, "json", "INFO"]
    closing = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(closing, timeout=LIMIT_SECONDS, check=False).returncode == 0
