"""What the user sees: in a terminal (a real pseudo-terminal of 80 columns), in a file, and not at all."""

from __future__ import annotations

import io
import math
import os
import re
import struct
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console as Terminal

from mnist_dist.console.console import (
    Console,
    NullConsole,
    PlainConsole,
    Progress,
    RichConsole,
    open_console,
)
from mnist_dist.console.formatting import (
    CONFUSION_TITLE,
    ConfusionTable,
    confusion_cells,
    describe_results,
    format_duration,
    format_percent,
    mistake_cells,
    worst_class_cells,
)

wraps_long_lines = pytest.mark.skipif(
    int(version("rich").split(".")[0]) < 15,
    reason="before rich 15, a long line above a live display is wrapped at the terminal's width",
)

DIGITS = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CONFUSION = [[(980 if truth == guess else (truth * guess) % 3) for guess in range(10)] for truth in range(10)]
METRICS = {"train.loss": 0.1234567, "train.accuracy": 0.98765, "lr": 0.00213, "images_per_second": 21345.6}
VAL = {"val.loss": 0.05, "val.accuracy": 0.985, "val.top2": 0.99}
EPOCH = {
    "epoch": 1,
    "split": "val",
    "lr": 0.003,
    "seconds": 75.2,
    "epoch.train.loss": 0.25,
    "epoch.train.accuracy": 0.925,
    **VAL,
}
SUMMARY = {
    "test.accuracy": 0.9905,
    "test.correct": 9905,
    "test.count": 10000,
    "test.loss": 0.03014,
    "test.top2": 0.999,
    "val.accuracy": 0.9888,
    "train.steps": 645,
    "train.epochs": 3,
    "train.images": 165000,
    "train.seconds": 12.31,
    "train.images_per_second": 13403.2,
    "world_size": 2,
    "machines": 1,
    "device": "cpu",
    "precision": "fp32",
    "model.parameters": 421642,
    "weights_sha256": "0123456789abcdef" * 4,
    "run.dir": "runs/default [1]",
}


def whole_run(console: Console) -> None:
    """Everything that a run of two steps calls."""
    console.header({"processes": "2 on 1 machine, gloo", "run": "runs/default [1]"})
    console.print("resuming from [bold]")
    console.start_progress(645, 0, 3)
    for step in (1, 2):
        console.progress(step, 0)
    console.time_left(math.nan)
    console.metrics(METRICS)
    console.evaluation("val", VAL)
    console.warn("something")
    console.epoch(EPOCH)
    console.close()
    console.summary(SUMMARY, CONFUSION, DIGITS)


# Plain lines


def test_plain_lines_of_a_whole_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    whole_run(PlainConsole())
    out, err = capsys.readouterr()
    assert err == "warning: something\n"
    lines = out.splitlines()
    assert lines[:6] == [
        "processes: 2 on 1 machine, gloo",
        "run: runs/default [1]",
        "resuming from [bold]",
        "step 2/645 (epoch 1/3): loss 0.1235, accuracy 98.77 %, lr 0.00213, 21,346 images/s, "
        "0:10 elapsed, 1:47:10 left",
        "step 2/645: val loss 0.0500, val accuracy 98.50 %, val top-2 99.00 %",
        "epoch 1/3: train loss 0.2500, train accuracy 92.50 %, "
        "val loss 0.0500, val accuracy 98.50 %, val top-2 99.00 %, lr 0.003, 1:15",
    ]
    assert lines[6] == "test accuracy: 99.05 % (9905 of 10000)"
    assert lines[-1] == "run folder: runs/default [1]"
    assert [line.split() for line in lines[-11:-9]] == [
        ["0", "980", *"." * 9, "100.00", "100.00"],
        ["1", ".", "980", *"2.12.12.", "99.19", "99.19"],  # 980 of 988
    ]
    assert len({len(line) for line in lines[-12:-1]}) == 1  # the matrix is aligned
    assert all(line == line.rstrip() and len(line) < 140 for line in lines)
    assert "\x1b" not in out
    assert "\r" not in out


def test_plain_lines_fit_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console = PlainConsole()
    console.print("Größe – 5")
    console.summary(SUMMARY, CONFUSION, ("Straße", *DIGITS[1:]))
    assert raw.getvalue().startswith(b"Gr??e ? 5\n")
    assert b"0 Stra?e " in raw.getvalue()


def test_each_line_is_written_at_once(tmp_path: Path) -> None:
    script = "import os; from mnist_dist.console.console import PlainConsole; PlainConsole().print('here'); os._exit(0)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"here\n"


# Nothing


def test_other_processes_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        whole_run(open_console(is_main=False, quiet=quiet))
    assert capfd.readouterr() == ("", "")


def test_quiet_says_only_where_the_run_is(capfd: pytest.CaptureFixture[str]) -> None:
    whole_run(open_console(is_main=True, quiet=True))
    assert capfd.readouterr() == ("runs/default [1]\n", "")


def test_all_kinds_answer_all_calls() -> None:
    public = {name for name in vars(Console) if not name.startswith("_")}
    for kind in (PlainConsole, RichConsole):
        assert public - vars(kind).keys() <= ({"close"} if kind is PlainConsole else set())
    assert public - vars(NullConsole).keys() == public - {"summary"}


# A terminal


def in_terminal(script: str, columns: int = 80, **environment: str) -> tuple[str, str]:
    """What a script writes to a pseudo-terminal that is its standard output and error, and its raw bytes as text.

    The first result is what stays on the screen: cursor movements and erasures applied, colours dropped.
    """
    pty = pytest.importorskip("pty")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PYTHONIOENCODING")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=child,
        stderr=child,
        cwd=Path(__file__).parent,  # to import from this file
        env=kept | {"TERM": "xterm-256color", "PYTHONUTF8": "1"} | environment,
    )
    os.close(child)
    raw = b""
    while True:
        try:
            block = os.read(main, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not block:
            break
        raw += block
    os.close(main)
    process.wait(timeout=60)
    return screen(raw.decode()), raw.decode()


def screen(raw: str) -> str:
    """The text that terminal output leaves, for the control sequences that rich uses."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", raw):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.endswith("A") and token.startswith("\x1b"):
            row = max(0, row - int(token[2:-1] or 1))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif not token.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return "\n".join(line.rstrip() for line in lines)


START = """
    import sys, threading
    from test_console import *
    console = open_console(is_main=True, quiet=False)
    assert isinstance(console, RichConsole)
"""


@wraps_long_lines
def test_terminal_shows_a_whole_run_in_80_columns() -> None:
    shown, raw = in_terminal(START + "    whole_run(console)")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:8] == [
        "processes  2 on 1 machine, gloo",
        "run        runs/default [1]",
        "resuming from [bold]",
        "step 2: val loss 0.0500, val accuracy 98.50 %, val top-2 99.00 %",
        "warning: something",
        "epoch train loss train acc   val loss   val acc  val top-2         lr     time",
        "    1     0.2500   92.50 %     0.0500   98.50 %    99.00 %      0.003     1:15",
        "",
    ]
    assert lines[8] == "test accuracy  99.05 % (9905 of 10000)"
    assert lines[-1] == "run folder  runs/default [1]"
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h") == 1  # the cursor is back
    assert "\x1b[1;31m" in raw  # mistakes
    assert "\x1b[33mwarning: something" in raw


def test_terminal_shows_live_progress_and_takes_it_away() -> None:
    script = """
    console.start_progress(645, 0, 3)
    console.progress(129, 0)
    console.metrics(METRICS)
    console._live.refresh()
    console.close()
    """
    shown, raw = in_terminal(START + script)
    assert shown.strip() == ""
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw)
    assert re.search(r"epoch 1/3  [━╺╸]+  129/645  0:0\d elapsed, 0:\d\d left", drawn)
    assert "loss 0.1235, accuracy 98.77 %, lr 0.00213, 21,346 images/s" in drawn


@wraps_long_lines
def test_terminal_keeps_what_others_print_above_the_progress() -> None:
    script = """
    console.start_progress(10, 0, 1)
    print("from a library")
    print("from its errors", file=sys.stderr)
    thread = threading.Thread(target=console.warn, args=["from a thread " + "x" * 100])
    thread.start()
    thread.join()
    console._live.refresh()
    console.close()
    """
    shown, _ = in_terminal(START + script)
    assert shown.strip().splitlines()[:2] == ["from a library", "from its errors"]
    assert "warning: from a thread " + "x" * 100 in shown


@pytest.mark.parametrize("ending", ["raise RuntimeError('boom')", "raise KeyboardInterrupt", "sys.exit(3)"])
def test_terminal_is_sane_after_any_ending(ending: str) -> None:
    script = f"""
    console.start_progress(10, 0, 1)
    try:
        {ending}
    finally:
        console.close()
        console.close()
    """
    shown, raw = in_terminal(START + script)
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")
    assert "epoch 1/1" not in shown


@pytest.mark.parametrize(
    ("columns", "kept"), [(30, "epoch acc acc"), (60, "epoch loss acc loss acc time"), (78, "all")]
)
def test_table_of_epochs_fits_its_terminal(columns: int, kept: str) -> None:
    """What has no room is left out, with its heading."""
    file = io.StringIO()
    console = RichConsole(Terminal(file=file, force_terminal=True, width=columns, color_system=None))
    console.epoch(EPOCH)
    header, row = file.getvalue().splitlines()
    assert len(header) == len(row) <= columns
    names = header.replace("train ", "").replace("val ", "").split()
    assert names == ("epoch loss acc loss acc top-2 lr time" if kept == "all" else kept).split()
    assert len(row.replace(" %", "").split()) == len(names)


SIZE_0 = """
    import sys
    from mnist_dist.utils.exit import run_to_exit_code
    from test_console import *
    sys.exit(run_to_exit_code(lambda: whole_run(open_console(is_main=True, quiet=False)) or 0))
"""


def test_a_terminal_that_says_it_has_no_size_is_as_wide_as_it_is() -> None:
    shown, _ = in_terminal(SIZE_0, COLUMNS="0", LINES="0")
    assert "epoch train loss train acc" in shown
    assert "run folder  runs/default [1]" in shown


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_terminal_of_any_width_shows_a_whole_run(columns: int) -> None:
    shown, _ = in_terminal(START + "    whole_run(console)", columns)
    assert "run folder  runs/default [1]" in shown
    assert "Traceback" not in shown


def test_terminal_shows_long_class_names_in_80_columns() -> None:
    shown, _ = in_terminal(START + "    console.summary(SUMMARY, CONFUSION, GARMENTS)")
    assert "0 T-shirt/t 980 " in shown
    assert "9 Ankle boo   . " in shown
    assert max(map(len, shown.splitlines())) <= 80


WHICH = "from test_console import *; print(type(open_console(is_main=True, quiet=False)).__name__)"


def test_terminals_that_cannot_redraw_get_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_terminal(WHICH)[0].strip() == "RichConsole"
    assert in_terminal(WHICH, TERM="dumb")[0].strip() == "PlainConsole"
    assert in_terminal(WHICH, PYTHONUTF8="0", PYTHONIOENCODING="ascii")[0].strip() == "PlainConsole"
    assert in_terminal(f"import sys; sys.settrace(lambda *_: None); {WHICH}")[0].strip() == "PlainConsole"
    assert isinstance(open_console(is_main=True, quiet=False), PlainConsole)


def test_a_file_gets_plain_lines_even_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert isinstance(open_console(is_main=True, quiet=False), PlainConsole)


def test_warnings_go_to_standard_error_where_that_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    shown = io.StringIO()
    console = RichConsole(Terminal(file=shown, force_terminal=True, width=80))
    console.start_progress(10, 0, 1)
    console.warn("something")
    console.close()
    assert capsys.readouterr().err == "warning: something\n"
    assert "something" not in shown.getvalue()


def test_progress_of_every_step_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    console = RichConsole(Terminal(file=io.StringIO(), force_terminal=True, width=80))
    drawn: list[int] = []
    draw = console._draw
    monkeypatch.setattr(console, "_draw", lambda: drawn.append(1) or draw())
    console.start_progress(10_000, 0, 1)
    try:
        for step in range(10_000):
            console.progress(step + 1, 0)
            console.metrics(METRICS)
    finally:
        console.close()
    assert len(drawn) < 1000  # a thread draws, about 8 times a second


def test_progress_is_redrawn_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    console = RichConsole(Terminal(file=io.StringIO(), force_terminal=True, width=80))
    drawn = threading.Semaphore(0)
    draw = console._draw
    monkeypatch.setattr(console, "_draw", lambda: drawn.release() or draw())
    console.start_progress(10, 0, 1)
    try:
        assert all(drawn.acquire(timeout=30) for _ in range(3))
    finally:
        console.close()


# Words


def test_time_left_is_of_the_steps_since_the_run_went_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(total_steps=100, step=60, epochs=2)
    assert math.isnan(progress.remaining())
    now[0], progress.step = 110.0, 70
    assert progress.elapsed() == 10.0
    assert progress.remaining() == 30.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (math.nan, "-:--")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_fractions_in_percent() -> None:
    assert (format_percent(0.9905), format_percent(1.0), format_percent(math.nan)) == ("99.05 %", "100.00 %", "-")


def test_results_leave_out_what_is_absent() -> None:
    assert describe_results({}) == {}
    assert describe_results({"test.accuracy": 0.5, "test.count": 10, "device": None, "world_size": 2}) == {
        "processes": "2"
    }
    shown = describe_results(SUMMARY)
    assert shown["test accuracy"] == "99.05 % (9905 of 10000)"
    assert (shown["steps"], shown["whole epochs"]) == ("645", "3")
    assert shown["speed"] == "13,403 images/s"
    assert shown["parameters"] == "421,642"
    assert shown["weights"] == "sha256 0123456789ab"
    assert describe_results({"test.accuracy": math.nan, "test.correct": 0, "test.count": 0}) == {
        "test accuracy": "- (0 of 0)"
    }


def test_matrix_has_precision_by_column_and_recall_by_row() -> None:
    confusion = [[3, 1], [0, 0]]
    assert confusion_cells(confusion, ("a", "b")) == [
        [" ", "a", "b", "prec %", "recall %"],
        ["a", "3", "1", "100.00", "75.00"],
        ["b", ".", ".", "0.00", "-"],
    ]
    assert [row[0] for row in confusion_cells(confusion, ("cat", "long-haired dog"))] == [
        " " * 11,
        "0 cat      ",
        "1 long-hair",
    ]


def confused(num_classes: int, mistakes: dict[tuple[int, int], int]) -> list[list[int]]:
    """A confusion matrix with 100 right images of each class but the last, which has none, and these mistakes."""
    return [
        [100 if a == b != num_classes - 1 else mistakes.get((a, b), 0) for b in range(num_classes)]
        for a in range(num_classes)
    ]


LETTERS = tuple(f"class {chr(65 + i // 26)}{chr(65 + i % 26)}" for i in range(47))
MISTAKES = {(3, 5): 25, (5, 3): 25, (8, 0): 300, (1, 0): 2}


def test_of_many_classes_the_worst_pairs_and_classes_are_shown_instead_of_the_matrix() -> None:
    confusion = confused(47, MISTAKES)
    assert mistake_cells(confusion, LETTERS) == [
        ["truth", "prediction", "images", "of the class %"],
        ["class AI", "class AA", "300", "75.00"],
        ["class AD", "class AF", "25", "20.00"],
        ["class AF", "class AD", "25", "20.00"],
        ["class AB", "class AA", "2", "1.96"],
    ]
    cells = worst_class_cells(confusion, LETTERS)
    assert len(cells) == 11
    assert cells[1:5] == [
        ["class AI", "400", "100.00", "25.00"],
        ["class AD", "125", "80.00", "80.00"],
        ["class AF", "125", "80.00", "80.00"],
        ["class AB", "102", "100.00", "98.04"],
    ]
    assert cells[5] == ["class AA", "100", "24.88", "100.00"]
    assert all(row[0] != LETTERS[46] for row in cells), "it has no images"
    assert worst_class_cells(confused(13, {(12, 0): 1}), LETTERS[:13])[1] == ["class AM", "1", "-", "0.00"]
    every = {(a, b): 1 for a in range(47) for b in range(47) if a != b}
    assert len(mistake_cells(confused(47, every), LETTERS)) == 11
    assert len(mistake_cells(confused(47, {}), LETTERS)) == 1


def test_47_classes_fit_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(f"a rather long name of class {index:02}" for index in range(47))
    PlainConsole().summary(SUMMARY, confused(47, MISTAKES), names)
    plain = capsys.readouterr().out.splitlines()
    text = io.StringIO()
    RichConsole(Terminal(file=text, width=80, highlight=False)).summary(SUMMARY, confused(47, MISTAKES), names)
    for lines in (plain, [line.rstrip() for line in text.getvalue().splitlines()]):
        assert max(map(len, lines)) <= 80
        start = lines.index("Most frequent mistakes")
        assert lines[start + 1].split() == ["truth", "prediction", "images", "of", "the", "class", "%"]
        assert "Classes with the lowest recall" in lines[start:]
        assert CONFUSION_TITLE not in lines
    PlainConsole().summary(SUMMARY, confused(12, {}), names[:12])
    assert CONFUSION_TITLE in capsys.readouterr().out


def test_console_imports_neither_torch_nor_wandb() -> None:
    script = "import sys, mnist_dist.console.console; sys.exit(bool({'torch', 'wandb', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(("width", "has_ratios"), [(60, False), (80, True)])
def test_a_narrow_terminal_shows_every_count_of_the_confusion_matrix(width: int, has_ratios: bool) -> None:
    confusion = [[1135 if i == j else 110 for j in range(10)] for i in range(10)]
    rows = confusion_cells(confusion, [f"a long name {i}" for i in range(10)])
    screen = io.StringIO()
    Terminal(file=screen, width=width).print(ConfusionTable(rows))
    heading, *lines = screen.getvalue().splitlines()
    assert max(map(len, [heading, *lines])) <= width
    assert ("recall" in heading) == has_ratios
    assert [line.count("110") for line in lines] == [9] * 10
    assert [line.count("1135") for line in lines] == [1] * 10


# The time left


class FakeTime:
    """A clock that is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_the_time_left_is_a_line_once_it_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, console = FakeTime(monkeypatch), PlainConsole()
    console.start_progress(40, 0, 2)
    for seconds, left in ((0.5, 90.0), (0.6, math.nan), (0.2, 75.4), (5.0, 70.0)):
        clock.now += seconds
        console.time_left(left)
    clock.now += 9
    console.progress(8, 0)
    console.metrics(METRICS)
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"time left: about 1:15 for the whole run, until \d\d:\d\d:\d\d", first)
    assert second.endswith("0:15 elapsed, 1:01 left")


def test_the_progress_counts_down_between_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime(monkeypatch)
    progress = Progress(40, 0, 2)
    progress.take_time_left(10.0)
    clock.now += 4
    assert progress.remaining() == 6
    clock.now += 40
    assert progress.remaining() == 0


def test_a_terminal_has_the_time_left_above_its_display() -> None:
    seen, _ = in_terminal(
        """
        from test_console import *
        console = open_console(is_main=True, quiet=False)
        console.start_progress(645, 0, 3)
        console._progress.start -= 2
        console.time_left(65.0)
        console.metrics(METRICS)
        console.close()
        """
    )
    assert re.search(r"time left +about 1:05 for the whole run, until \d\d:\d\d:\d\d", seen)
