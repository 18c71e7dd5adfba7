"""What the downloader promises on good and bad lines, tried on a local server with small archives."""
import hashlib
import io
import os
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from semseg_course.data.datasets import CamVid, camvid_splits, mini_camvid
from semseg_course.data.download import SOURCES, Source, download, fetch, file_faults, prepare
from semseg_course.data.labels import CAMVID


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.log.append(asked)
        if server.status: return self.send_error(server.status)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(server.body): return self.send_error(416)
        self.send_response(206 if start else 200)
        first = start + server.shift if start else 0
        if start: self.send_header("Content-Range", f"bytes {first}-{len(server.body) - 1}/{len(server.body)}")
        if server.length: self.send_header("Content-Length", str(len(server.body) - first))
        self.end_headers()
        self.wfile.write(server.body[first:][: server.hang_up.pop(0) if server.hang_up else None])

    def log_message(self, *_): pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.ranges, server.length, server.shift, server.status, server.hang_up, server.log = True, True, 0, None, [], []
    server.url = f"http://127.0.0.1:{server.server_port}/archive.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return mini_camvid(tmp_path_factory.mktemp("tree") / "CamVid", counts=(2, 1, 1), size=(36, 48))


def archive(tree: Path, extra: dict[str, bytes] | None = None, replaced: dict[str, bytes] | None = None) -> bytes:
    "The tree as GitHub would pack it: one top folder, and files that nobody asked for."
    members = {f"Tutorial-abc/CamVid/{path.relative_to(tree).as_posix()}": path.read_bytes()
               for path in sorted(tree.rglob("*.*"))}
    members |= {"Tutorial-abc/README.md": b"hello"} | (extra or {}) | (replaced or {})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack:
        for name, data in members.items(): pack.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def source(tree, server, tmp_path, monkeypatch):
    "A source named mini that the local server offers; its list has the pictures only."
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  CamVid/{path.relative_to(tree).as_posix()}\n"
             for path in sorted(tree.rglob("*.png"))]
    (tmp_path / "sums.txt").write_text("".join(lines))
    source = Source(server.url, "CamVid", str(tmp_path / "sums.txt"), camvid_splits, CAMVID)
    monkeypatch.setitem(SOURCES, "mini", source)
    server.body = archive(tree)
    return source


def get(root, **settings): return download("mini", root, progress=False, **settings)


def nothing_that_looks_whole(root): return not (root / "CamVid").exists() and not list(root.glob(".*"))


def test_downloads_only_the_listed_files_and_leaves_nothing_else(source, tmp_path):
    root = get(tmp_path / "data")
    assert file_faults(root, source.files()) == []
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert found == set(source.files())
    assert len(CamVid(root, "train")) == 2


def test_a_second_call_asks_nobody(source, server, tmp_path):
    get(tmp_path / "data")
    server.log.clear()
    get(tmp_path / "data")
    assert server.log == []


def test_goes_on_where_the_line_broke(source, server, tmp_path):
    server.hang_up = [700, 400, 1]
    get(tmp_path / "data")
    assert server.log == [None, "bytes=700-", "bytes=1100-", "bytes=1101-"]


def test_starts_over_when_the_server_knows_no_ranges(source, server, tmp_path):
    server.ranges, server.hang_up = False, [700]
    root = get(tmp_path / "data")
    assert file_faults(root, source.files()) == [] and len(server.log) == 2


def test_goes_on_in_a_later_process(source, server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini.zip.part").write_bytes(server.body[:555])
    get(tmp_path / "data")
    assert server.log == ["bytes=555-"]


def test_a_range_that_begins_elsewhere_is_not_appended(source, server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini.zip.part").write_bytes(server.body[:555])
    server.shift = 3
    assert file_faults(get(tmp_path / "data"), source.files()) == []
    assert server.log == ["bytes=555-", None]


def test_a_part_longer_than_the_file_is_dropped(source, server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini.zip.part").write_bytes(b"x" * (len(server.body) + 9))
    assert file_faults(get(tmp_path / "data"), source.files()) == []
    assert server.log == [f"bytes={len(server.body) + 9}-", None]


def test_a_part_of_another_file_is_noticed_and_dropped(source, server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini.zip.part").write_bytes(b"x" * 600)
    with pytest.raises(ValueError, match="was removed; run this again"): get(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    assert file_faults(get(tmp_path / "data"), source.files()) == []


def test_works_without_a_content_length(source, server, tmp_path):
    server.length = False
    assert file_faults(get(tmp_path / "data"), source.files()) == []


def test_a_torn_archive_of_unknown_length_is_removed(source, server, tmp_path):
    server.length, server.hang_up = False, [900]
    with pytest.raises(ValueError, match="mini.zip cannot be used.*run this again"): get(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_changed_file_is_named(source, server, tree, tmp_path):
    name = sorted(source.files())[3]
    server.body = archive(tree, replaced={f"Tutorial-abc/{name}": b"other"})
    with pytest.raises(ValueError, match=f"{name} is changed; expected SHA-256"): get(tmp_path / "data")
    assert nothing_that_looks_whole(tmp_path / "data")


def test_a_missing_file_is_named(source, server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack: pack.writestr("Tutorial-abc/README.md", "nothing else")
    server.body = buffer.getvalue()
    with pytest.raises(ValueError, match=f"{next(iter(source.files()))} is missing"): get(tmp_path / "data")
    assert nothing_that_looks_whole(tmp_path / "data")


@pytest.mark.parametrize("name", ["../evil.txt", "Tutorial-abc/../../evil.txt", "/tmp/evil.txt",
                                  "Tutorial-abc\\..\\evil.txt", "C:/evil.txt"])
def test_a_hostile_member_is_refused_by_name(source, server, tree, tmp_path, name):
    server.body = archive(tree, extra={name: b"evil"})
    with pytest.raises(ValueError, match="evil.txt' would leave the folder"): get(tmp_path / "data")
    assert nothing_that_looks_whole(tmp_path / "data") and not list(tmp_path.rglob("evil*"))


def test_a_link_in_the_archive_never_becomes_a_link(source, server, tree, tmp_path):
    name = next(iter(source.files()))
    link = zipfile.ZipInfo(f"Tutorial-abc/{name}")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack: pack.writestr(link, "/etc/passwd")
    server.body = buffer.getvalue()
    with pytest.raises(ValueError, match="is changed"): get(tmp_path / "data")
    assert nothing_that_looks_whole(tmp_path / "data")


def test_a_folder_that_is_not_the_original_is_left_alone(source, tmp_path):
    root = get(tmp_path / "data")
    file = root / next(iter(source.files()))
    file.write_bytes(b"mine")
    with pytest.raises(ValueError, match="is not the original.*is changed. Move this folder away"): get(root)
    assert file.read_bytes() == b"mine"


def test_leftovers_of_a_killed_run_do_no_harm(source, tmp_path):
    left = tmp_path / "data/.CamVid.unpacking/CamVid/train"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"half")
    root = get(tmp_path / "data")
    assert [path.name for path in root.iterdir()] == ["CamVid"] and not list(root.rglob("half.png"))


def test_killed_before_the_rename_nothing_looks_whole(source, tmp_path, monkeypatch):
    rename = os.replace
    def killed(a, b):
        if Path(b).name == "CamVid": raise KeyboardInterrupt
        rename(a, b)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt): get(tmp_path / "data")
    assert nothing_that_looks_whole(tmp_path / "data")
    assert (tmp_path / "data/mini.zip").exists()  # the archive serves next time


def test_offline_says_what_to_do_and_keeps_the_part(source, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini.zip.part").write_bytes(b"12345")
    with pytest.raises(ConnectionError, match="go on from 5 bytes. Offline.*copy the file to .*mini.zip.*Toy Streets"):
        get(tmp_path / "data", url=f"http://127.0.0.1:{port}/archive.zip")
    assert (tmp_path / "data/mini.zip.part").read_bytes() == b"12345"


def test_an_archive_brought_by_hand_is_taken(source, server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini.zip").write_bytes(server.body)
    assert file_faults(get(tmp_path / "data"), source.files()) == [] and server.log == []


def test_a_local_address_works(source, server, tmp_path):
    (tmp_path / "copy.zip").write_bytes(server.body)
    root = get(tmp_path / "data", url=(tmp_path / "copy.zip").as_uri())
    assert file_faults(root, source.files()) == [] and server.log == []


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusing_server_is_an_error_with_its_answer(source, server, tmp_path, status):
    server.status = status
    with pytest.raises(ConnectionError, match=f"could not be fetched: HTTP Error {status}"):
        fetch(server.url, tmp_path / "file", progress=False)


def test_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match="one of .*camvid.*got 'kitti'"): download("kitti", tmp_path)


def test_the_shipped_list_is_camvids():
    source = SOURCES["camvid"]
    counts = [sum(path.startswith(f"CamVid/{split}/") for path in source.files()) for split in ("train", "val", "test")]
    assert counts == [367, 101, 233] and len(source.files()) == 1402
    assert "bb68b64e72cb004b3ed927fee0f5624dd8097498" in source.url
    assert all(len(digest) == 64 for digest in source.files().values())


def test_prepare_downloads_checks_looks_and_counts(source, tmp_path):
    done = prepare("mini", tmp_path / "data", progress=False)
    assert done["downloaded"] and done["pairs"] == {"train": 2, "val": 1, "test": 1}
    assert all(Path(path).stat().st_size > 100 for path in done["files"])
    assert not prepare("mini", tmp_path / "data", tmp_path / "out", progress=False)["downloaded"]
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_prepare_names_the_faulty_files(source, tmp_path):
    prepare("mini", tmp_path / "data", progress=False)
    label = next((tmp_path / "data/CamVid/trainannot").glob("*.png"))
    label.write_bytes(label.read_bytes()[:60])
    with pytest.raises(ValueError, match=label.name): prepare("mini", tmp_path / "data", progress=False)
