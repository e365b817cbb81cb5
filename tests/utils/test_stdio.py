"""Standard output that fails: a training run goes on to its end, any other program ends with one line, exit code 1."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import run_ranks
from programs import write_digits

from mnist_dist.train import main
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED
from mnist_dist.utils.exit import run_to_exit_code
from mnist_dist.utils.stdio import discarded_stdout, ignore_output_errors

FULL = "No space left on device"
SETTINGS = (
    *("--data.root=.", "--data.source=local", "--data.val_size=50", "--run.threads=1", "--run.device=cpu"),
    *("--model.name=basic", "--train.epochs=1", "--train.batch_size=50", "--tracking.mode=disabled"),
)
PROGRAM = "from mnist_dist.utils.exit import exit_with, run_to_exit_code\n"
LINE = f"mnist_dist: error: standard output: {FULL}\n"


class FailingStream(io.StringIO):
    """Fails at each write until `space` is set, then keeps the text."""

    space = False

    def write(self, text: str) -> int:
        if not self.space:
            raise OSError(errno.ENOSPC, FULL)
        return super().write(text)


class BareStream:
    """A stream with `write` alone, as a program that embeds this one may have put in place of standard output."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


@contextlib.contextmanager
def streams(out: object, err: object) -> Iterator[None]:
    """Other objects as standard output and standard error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def gone_reader() -> io.TextIOWrapper:
    """The write end of a pipe whose read end is closed."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def train_with_failing_outputs(folder: Path) -> dict[str, tuple[int, str, str]]:
    """Train with each kind of standard output; by its name: exit code, standard error, digest of the weights."""
    os.chdir(folder)
    closed = io.StringIO()
    closed.close()
    kinds = {
        "works": io.StringIO(),
        "full": FailingStream(),
        "gone": gone_reader(),
        "none": None,
        "closed": closed,
        "bare": BareStream(),
        "both": FailingStream(),
    }
    ended = {}
    for name, out in kinds.items():
        err = FailingStream() if name == "both" else io.StringIO()
        with streams(out, err):
            code = main([*SETTINGS, f"--run.dir={name}"])
        digest = json.loads(Path(name, "summary.json").read_text())["weights_sha256"]
        ended[name] = (code, err.getvalue(), digest)
    return ended


def test_training_goes_on_where_standard_output_fails_and_says_so_once(tmp_path: Path) -> None:
    write_digits(tmp_path, train=250, test=50)
    (ended,) = run_ranks(1, train_with_failing_outputs, tmp_path)
    assert {code for code, _, _ in ended.values()} == {EXIT_DONE}
    assert len({digest for _, _, digest in ended.values()}) == 1
    causes = {
        "full": FULL,
        "gone": "Broken pipe",
        "none": "Bad file descriptor",
        "closed": "I/O operation on closed file",
    }
    for name, (_, err, _) in ended.items():
        cause = causes.get(name)
        assert err == (f"warning: standard output: {cause}; training goes on without it\n" if cause else "")


@pytest.mark.parametrize(
    ("redirection", "err"),
    [("> /dev/full", LINE), (">&-", LINE.replace(FULL, "Bad file descriptor")), (">&- 2>&-", ""), ("2> /dev/full", "")],
)
def test_any_other_program_ends_with_one_line(redirection: str, err: str) -> None:
    """The last one has nothing to report: its standard output works."""
    body = "exit_with(lambda: run_to_exit_code(lambda: print('answer') or 0))"
    command = ["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, PROGRAM + body]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    failed = redirection != "2> /dev/full"
    assert (ended.returncode, ended.stdout, ended.stderr) == (failed, "" if failed else "answer\n", err)


def test_the_exit_code_of_an_error_is_kept_where_it_cannot_be_said() -> None:
    body = (
        "from mnist_dist.utils.errors import Stopped\n"
        "def stop(): raise Stopped('at step 3')\n"
        "exit_with(lambda: run_to_exit_code(stop))"
    )
    command = ["sh", "-c", '"$0" -c "$1" > /dev/full 2> /dev/full', sys.executable, PROGRAM + body]
    assert subprocess.run(command, check=False, timeout=120).returncode == 3


def test_a_closed_descriptor_is_not_given_to_the_next_file() -> None:
    """Else what a library writes to descriptor 1 or 2 would go into that file, such as a checkpoint."""
    body = "import os\nexit_with(lambda: os.write(int(os.environ['OUT']), str(os.open('/', 0)).encode()) and 0)"
    read, write = os.pipe()
    command = ["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, PROGRAM + body]
    environment = os.environ | {"OUT": str(write)}
    assert subprocess.run(command, env=environment, pass_fds=[write], check=False, timeout=120).returncode == 0
    os.close(write)
    with os.fdopen(read) as answer:
        assert int(answer.read()) > 2


def test_lines_are_written_again_once_there_is_room() -> None:
    """A log's disk that was full for a while."""
    out, err = FailingStream(), io.StringIO()

    def program() -> int:
        ignore_output_errors("it goes on")
        print("lost")
        print("lost too")
        out.space = True
        print("kept")
        return 0

    with streams(out, err):
        assert run_to_exit_code(program) == EXIT_DONE
    assert out.getvalue() == "kept\n"
    assert err.getvalue() == f"warning: standard output: {FULL}; it goes on\n"


def test_streams_are_restored_and_odd_ones_get_what_they_can_take() -> None:
    bare, ascii_only = BareStream(), io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    def program() -> int:
        assert (sys.stdout.encoding, sys.stdout.isatty()) == ("utf-8", False)
        with pytest.raises(OSError, match="Bad file descriptor"):
            sys.stdout.fileno()
        print("Größe")
        print("Größe", file=sys.stderr)
        return EXIT_FAILED

    with streams(bare, ascii_only):
        assert run_to_exit_code(program) == EXIT_FAILED
        assert (sys.stdout, sys.stderr) == (bare, ascii_only)
    assert bare.text == "Größe\n"
    ascii_only.seek(0)
    assert ascii_only.read() == "Gr??e\n"


def test_what_native_code_prints_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    print("before", end=" ")
    with discarded_stdout():
        os.write(1, b"[Gloo] Rank 0 is connected")
    os.write(1, b"after")
    assert capfd.readouterr().out == "before after"
    stdout = os.dup(1)
    os.close(1)
    try:
        with discarded_stdout(), pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
