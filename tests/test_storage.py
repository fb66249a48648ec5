import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyarrow import fs

from mammoray import storage
from mammoray.errors import StorageError
from tests.proxy import Door, Mode


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``root`` with files, an empty folder, links within it and links out of it."""
    root = tmp_path / "root"
    for path in ("a/1.dcm", "a/b/2.dcm", "3.dcm"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    (root / "empty").mkdir()
    (tmp_path / "secret.dcm").write_bytes(b"not yours")
    (root / "inside.dcm").symlink_to(root / "3.dcm")
    (root / "out.dcm").symlink_to(tmp_path / "secret.dcm")
    (root / "gone.dcm").symlink_to(root / "nothing.dcm")
    (root / "round").symlink_to(root)
    (root / "away").symlink_to(tmp_path)
    return root


def listed(root: str, links: storage.Links = "inside") -> dict[str, str]:
    return {entry.path: entry.kind for entry in storage.walk(root, links)}


def test_a_walk_finds_files_and_empty_folders_and_stays_below_the_root(tree: Path) -> None:
    assert listed(str(tree)) == {
        "3.dcm": "file",
        "a/1.dcm": "file",
        "a/b/2.dcm": "file",
        "away": "link out",
        "empty": "empty folder",
        "inside.dcm": "file",
        "out.dcm": "link out",
    }
    sizes = {entry.path: entry.size for entry in storage.walk(str(tree)) if entry.kind == "file"}
    assert sizes["a/b/2.dcm"] == len("a/b/2.dcm")


def test_links_to_files_are_followed_on_request_and_links_to_folders_never(tree: Path) -> None:
    found = listed(str(tree), "follow")
    assert found["out.dcm"] == "file"
    assert "away/secret.dcm" not in found and "round/3.dcm" not in found


def test_a_root_that_is_a_link_itself_is_no_way_out(tree: Path) -> None:
    (tree.parent / "door").symlink_to(tree)
    assert listed(str(tree.parent / "door")) == listed(str(tree))


def test_the_same_tree_is_found_on_an_object_store(tree: Path, s3: str) -> None:
    root = storage.join(s3, "walked")
    system, base = storage.filesystem(root)
    for path in ("a/1.dcm", "a/b/2.dcm", "3.dcm"):
        with system.open_output_stream(f"{base}/{path}") as sink:
            sink.write(path.encode())
    found = {entry.path: entry for entry in storage.walk(root)}
    assert sorted(found) == ["3.dcm", "a/1.dcm", "a/b/2.dcm"]
    assert found["a/1.dcm"].size == len("a/1.dcm") and found["a/1.dcm"].mtime_ns > 0
    assert storage.read(storage.join(root, "a/1.dcm"), 3) == b"a/1"
    assert bytes(storage.content(storage.join(root, "a/b/2.dcm"))) == b"a/b/2.dcm"
    assert storage.is_folder(root) and not storage.is_folder(storage.join(root, "none"))
    assert storage.is_file(storage.join(root, "3.dcm")) and not storage.is_file(storage.join(root, "4.dcm"))


@pytest.mark.cluster
@pytest.mark.parametrize("mode", ["shut", "busy"])
def test_an_object_store_that_refuses_for_a_while_is_asked_again(mode: Mode, s3: str) -> None:
    found = re.search(r"127.0.0.1:(\d+)", s3)
    assert found
    door = Door(int(found[1]))
    file = storage.join(s3.replace(found[0], f"127.0.0.1:{door.port}"), "asked.dcm")
    system, path = storage.filesystem(file)
    with system.open_output_stream(path) as sink:
        sink.write(b"asked")
    door.turn(mode)
    threading.Timer(8, door.turn, ["open"]).start()  # pyarrow's own way gives up after six seconds.
    started = time.monotonic()
    assert storage.read(file) == b"asked"
    assert time.monotonic() - started > 6
    assert door.refused > 2
    door.close()


def test_announced_files_of_an_object_store_are_fetched_side_by_side_and_once(s3: str) -> None:
    found = re.search(r"127.0.0.1:(\d+)", s3)
    assert found
    door = Door(int(found[1]), delay=0.3)
    root = storage.join(s3.replace(found[0], f"127.0.0.1:{door.port}"), "announced")
    files = [storage.join(root, f"{number}.dcm") for number in range(8)]
    for number, file in enumerate(files):
        system, path = storage.filesystem(file)
        with system.open_output_stream(path) as sink:
            sink.write(bytes([number]) * 1000)

    def fetch(ahead: int) -> tuple[int, int]:
        door.requests = door.most = 0
        for number, file in enumerate(files):
            for name in files[number : number + ahead]:
                storage.announce(name)
            assert bytes(storage.content(file)) == bytes([number]) * 1000
        return door.requests, door.most

    requests, at_once = fetch(0)
    assert at_once == 1
    assert fetch(6) == (requests, 4)
    storage.announce(storage.join(root, "missing.dcm"))
    with pytest.raises(FileNotFoundError):
        storage.content(storage.join(root, "missing.dcm"))
    door.close()


@pytest.mark.parametrize("name", ["a breast #1?.dcm", "50%20.dcm", "a+b/c&d=e.dcm", "mama esquerda \u00e7.dcm"])
def test_files_with_odd_names_are_found_and_read_on_every_storage(name: str, s3: str, tmp_path: Path) -> None:
    for root in (s3, str(tmp_path), tmp_path.as_uri()):
        below = storage.join(root, "odd")
        if root == s3:
            system, path = storage.filesystem(below)
            with system.open_output_stream(f"{path}/{name}") as sink:
                sink.write(name.encode())
        else:
            (tmp_path / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "odd" / name).write_bytes(name.encode())
        assert name in [entry.path for entry in storage.walk(below)]
        storage.announce(storage.join(below, name))
        assert bytes(storage.content(storage.join(below, name))) == name.encode()
        assert storage.is_file(storage.join(below, name))


def test_files_of_a_google_bucket_share_their_connections() -> None:
    first, second = (storage.filesystem(f"gs://anonymous@bucket/{name}.dcm") for name in ("a", "b%20c"))
    assert first[0] is second[0]
    assert second[1] == "bucket/b c.dcm"


def test_a_local_file_is_not_fetched(tmp_path: Path) -> None:
    for name in (str(tmp_path / "x"), (tmp_path / "x").as_uri()):
        storage.announce(name)  # It is not there yet: a fetch would fail.
    (tmp_path / "x").write_bytes(b"now")
    for name in (str(tmp_path / "x"), (tmp_path / "x").as_uri()):
        assert bytes(storage.content(name)) == b"now"


def test_files_of_a_bucket_share_its_connections(s3: str) -> None:
    first, second = (storage.filesystem(storage.join(s3, name)) for name in ("a/1.dcm", "b/a name.dcm"))
    assert first[0] is second[0]
    assert second[1] == "bucket/some/prefix/b/a name.dcm"


def test_the_content_of_a_local_file_is_the_file(tree: Path) -> None:
    for place in (str(tree / "3.dcm"), (tree / "3.dcm").as_uri()):
        assert bytes(storage.content(place)) == b"3.dcm" == storage.read(place)
    (tree / "nil").write_bytes(b"")
    assert storage.content(str(tree / "nil")) == b""


def test_what_cannot_be_listed_is_an_error_that_tells_no_secret(tmp_path: Path, s3: str) -> None:
    with pytest.raises(StorageError, match="--dicom-root"):
        list(storage.walk(str(tmp_path / "none")))
    with pytest.raises(StorageError, match=r"s3://none.*credentials") as caught:
        list(storage.walk(s3.replace("bucket/some/prefix", "none")))
    assert "127.0.0.1" not in str(caught.value)
    with pytest.raises(StorageError, match="--csv"):
        storage.is_file("nothing://x/y")


def test_names_are_joined_and_split_behind_the_path_and_before_the_query() -> None:
    assert storage.split(storage.join("s3://b/p?x=1", "n.csv")) == ("s3://b/p?x=1", "n.csv")
    assert storage.split(storage.join("/b/p", "n.csv")) == ("/b/p", "n.csv")
    assert isinstance(storage.filesystem("/tmp")[0], fs.LocalFileSystem)


def test_a_file_system_that_is_sent_to_another_process_asks_as_patiently_as_here(s3: str) -> None:
    closed = s3.split("endpoint_override=", maxsplit=1)[0] + "endpoint_override=127.0.0.1:9&scheme=http"
    code = f"""
import pickle, time
from mammoray import storage
storage._ATTEMPTS = 7
system, path = storage.filesystem({closed!r})
began = time.monotonic()
try:
    pickle.loads(pickle.dumps(system)).get_file_info(path)
except OSError:
    print(time.monotonic() - began)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 2.5, "pyarrow's own way takes one second"
