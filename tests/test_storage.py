import ast
import concurrent.futures
import errno
import fcntl
import importlib.util
import io
import json
import os
import re
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import rich.console
from etils import epath

from segjax import storage
from segjax.storage import (
    LOCK_FILE,
    ForeignFileError,
    StorageError,
    check_outputs,
    escape_what_cannot_be_encoded,
    in_bucket,
    nan_to_none,
    output_folder,
    path_of,
    printable,
    read_file,
    read_json,
    reserve,
    say,
    scratch,
    write_bytes,
    write_json,
    write_outputs,
    write_together,
)


def test_path_of_returns_a_local_path_unchanged(tmp_path):
    assert str(path_of("runs/a")) == str(path_of(Path("runs/a"))) == "runs/a"
    assert path_of(tmp_path) == epath.Path(tmp_path)
    assert not in_bucket(tmp_path)


@pytest.mark.parametrize("path", ["s3://bucket/run", "https://storage/bucket/run", Path("gs://bucket/run")])
def test_path_of_refuses_an_address_of_another_kind(path):
    with pytest.raises(StorageError, match=r"run: expected a path of this machine, or gs://BUCKET/PATH as a str"):
        path_of(path)


@pytest.mark.parametrize("path", ["gs://", "gs://bucket", "gs://bucket/", "gs:///run"])
def test_path_of_refuses_a_bucket_without_a_folder(path):
    with pytest.raises(StorageError, match=f"^{path}: expected a path in a bucket, gs://BUCKET/PATH$"):
        path_of(path)


def test_path_of_names_the_extra_that_installs_gcsfs(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gcsfs" else found(name, *rest)
    )
    with pytest.raises(
        StorageError, match=r"^gs://b/run: .* gcsfs, which is not installed: pip install .*'\.\[train,gcs\]'$"
    ):
        path_of("gs://b/run")


def test_write_json_replaces_the_file_and_leaves_nothing_else(tmp_path):
    for value, text in (({"a": 1}, '{\n "a": 1\n}\n'), ([float("nan")], "[\n NaN\n]\n")):
        write_json(tmp_path / "a.json", value)
        assert (tmp_path / "a.json").read_bytes() == text.encode()
    assert np.isnan(read_json(tmp_path / "a.json")).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_nan_to_none_replaces_numbers_that_are_not_finite_at_any_depth():
    value = {"a": [1.0, float("nan"), (float("inf"), "NaN", None)], "b": 2}
    assert nan_to_none(value) == {"a": [1.0, None, [None, "NaN", None]], "b": 2}


def partial_name(folder, monkeypatch):
    """Makes the next partial file of `folder` a full device."""
    monkeypatch.setattr(storage, "_PARTIAL", ".segjax-next.partial{:.0}")
    (folder / ".segjax-next.partial").symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system does not have /dev/full")
def test_full_disk_keeps_the_old_file_and_removes_the_partial_one(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a.png", b"old")
    partial_name(tmp_path, monkeypatch)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.png'$"):
        write_bytes(tmp_path / "a.png", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system does not have /dev/full")
def test_write_together_on_a_full_disk_keeps_all_old_files(tmp_path, monkeypatch):
    names = ("model", "card", "script")
    for name in names:
        write_bytes(tmp_path / name, b"old")
    partial_name(tmp_path, monkeypatch)
    with pytest.raises(OSError, match=r"No space left on device: '.*/model'$"):
        write_together({tmp_path / name: b"new" for name in names})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == dict.fromkeys(names, b"old")


def test_write_bytes_of_one_file_from_two_threads_is_always_whole(tmp_path):
    contents = [bytes([i]) * 2**16 for i in range(2)]
    write_bytes(tmp_path / "a", contents[0])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        writes = [pool.submit(write_bytes, tmp_path / "a", contents[i % 2]) for i in range(200)]
        while not all(write.done() for write in writes):
            assert (tmp_path / "a").read_bytes() in contents
        for write in writes:
            write.result()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_outputs_replaces_its_own_files_and_no_other(tmp_path):
    file = tmp_path / "new" / "a.md"
    for content in (b"one", b"two", b"one"):
        write_outputs({file: content})
        assert file.read_bytes() == content
    file.write_bytes(b"edited")
    for refuse in (lambda: check_outputs([file]), lambda: write_outputs({file: b"two"})):
        with pytest.raises(ForeignFileError, match=r"a\.md: exists.*another folder.*--overwrite"):
            refuse()
    assert file.read_bytes() == b"edited"
    write_outputs({file: b"two"}, overwrite=True)
    check_outputs([file])


def test_write_outputs_of_several_files_writes_none_if_one_is_foreign(tmp_path):
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(ForeignFileError, match="/b: exists"):
        write_outputs({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_file_of_a_killed_write_outputs_may_be_replaced(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(storage, "write_together", lambda files: None)
        write_outputs({tmp_path / "a": b"new"})
    (tmp_path / "a").write_bytes(b"new")  # killed after the rename, before anything else
    with (tmp_path / storage.WRITTEN_FILE).open("a") as listing:
        listing.write("\n0123")  # another process, on a full disk
    write_outputs({tmp_path / "a": b"newer"})
    write_outputs({tmp_path / "a": b"newest"})
    assert (tmp_path / "a").read_bytes() == b"newest"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", "a".encode("utf-16"), b"[" * 100_000])
def test_check_outputs_with_a_damaged_list_takes_no_file_for_its_own(tmp_path, content):
    write_outputs({tmp_path / "a": b"ours"})
    listing = tmp_path / storage.WRITTEN_FILE
    listing.unlink()
    listing.mkdir() if content is None else listing.write_bytes(content)
    with pytest.raises(ForeignFileError):
        check_outputs([tmp_path / "a"])


def test_check_outputs_refuses_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(ForeignFileError):
        check_outputs([tmp_path])


def test_read_json_names_the_first_difference_from_its_form(tmp_path):
    write_json(tmp_path / "a.json", {"step": 3, "cells": [{"name": "a"}, {"name": 1}], "loss": 1})
    file = tmp_path / "a.json"
    assert read_json(file, {"step": int, "loss": float, "cells": [dict]})["step"] == 3
    for form, found in (
        (list, "it is dict and not list"),
        ({"stop": int}, "it has no stop"),
        ({"step": str}, "its step is int and not str"),
        ({"cells": [{"name": str}]}, "its cells item 2 name is int and not str"),
    ):
        with pytest.raises(StorageError, match=rf"a\.json: expected the cells of a sweep; {found}\. Delete it$"):
            read_json(file, form, "the cells of a sweep", "Delete it")


def test_read_file_refuses_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match=r"/pipe: expected a log; it is not a regular file"):
        read_file(tmp_path / "pipe", "a log")


def test_output_folder_removes_what_a_killed_process_left_long_ago(tmp_path):
    old, new = (tmp_path / storage._PARTIAL.format(name) for name in ("old", "new"))
    for file in (old, new):
        file.touch()
    os.utime(old, (0, 0))
    output_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_output_folder_refuses_a_file(tmp_path):
    (tmp_path / "notes").write_text("mine")
    assert output_folder(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(StorageError, match=r"/notes: expected a folder to write into; it is a file\. Name another"):
        output_folder(tmp_path / "notes")


def test_large_scratch_array_is_an_unnamed_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small, large = scratch((5, 5), np.float32, most=100), scratch((5, 6), np.float32, most=100)
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    large[:] = 3
    assert large.sum() == 90
    assert not any(tmp_path.iterdir())


def test_scratch_array_on_a_full_disk_is_refused_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device (120 bytes needed): '{tmp_path}'")):
        scratch((5, 6), np.float32, most=100)


def test_named_like_of_a_folder_whose_name_is_a_pattern(tmp_path):
    folder = epath.Path(tmp_path) / "out [x] *"
    assert storage.named_like(folder, "*") == []
    folder.mkdir()
    (folder / "a_1.csv").touch()
    (folder / "b.csv").touch()
    assert storage.named_like(folder, "a_*.csv") == [folder / "a_1.csv"]


# Lines on a terminal.

HOSTILE = [
    "[bold]x[/bold]",
    "[/]",
    "\x1b[2J",
    "two\nlines",
    "\x9b31m",
    "\u202egnp.exe",
    "\udcff",
    "日本",
    ":smile:",
    "1.5 'a'",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("on_console", [True, False])
def test_say_prints_one_plain_line_in_every_encoding(name, encoding, on_console, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    escape_what_cannot_be_encoded()
    say(f"/runs/{name}" + "x" * 300, rich.console.Console(file=stream, force_terminal=True) if on_console else None)
    stream.flush()
    shown = f"/runs/{printable(name)}" + "x" * 300 + "\n"
    assert stream.buffer.getvalue().decode(encoding) == shown.encode(encoding, "backslashreplace").decode(encoding)


def test_printable_keeps_letters_of_every_script_and_is_idempotent():
    assert printable("è 日本 नी \u200d 👍 [x] \\ a\u3000b") == "è 日本 नी \u200d 👍 [x] \\ a\u3000b"
    assert printable(printable("\x1b\n")) == printable("\x1b\n") == r"\x1b\n"


def test_every_line_of_the_package_is_printed_by_say():
    # These print tables, texts of our own (`segjax configs`, `--help`), and in the exported script.
    own = {"storage.py", "cli.py", "__main__.py", "shipped_configs.py", "standalone_predict.py", "report.py"}
    root, found = Path(__file__).parent.parent / "segjax", []
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "print" and file.name not in own:
                found.append(f"{file}:{node.lineno}")
    assert found == []


def leave_lock(folder, **changes):
    owner = {"host": socket.gethostname(), "pid": os.getppid(), "since": "2026-01-01 00:00:00"} | changes
    (folder / LOCK_FILE).write_text(json.dumps(owner))


def test_reserve_refuses_a_second_time_until_it_ends(tmp_path):
    folder = epath.Path(tmp_path)
    for _ in range(2):
        with reserve(folder):
            held = (tmp_path / LOCK_FILE).read_bytes()
            named = f"{tmp_path}: in use by process {os.getpid()} on {socket.gethostname()} since"
            with pytest.raises(StorageError, match=named), reserve(folder):
                pass
            assert (tmp_path / LOCK_FILE).read_bytes() == held
        assert list(tmp_path.iterdir()) == []


def test_reserve_takes_the_folder_of_a_killed_process_although_its_number_was_given_to_another(tmp_path):
    leave_lock(tmp_path)  # our parent is running, but does not hold the folder
    with reserve(epath.Path(tmp_path)):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_reserve_refuses_the_folder_of_another_machine_while_its_process_touches_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_SILENT", 30)
    monkeypatch.setattr(storage, "_ALIVE", 0.01)
    leave_lock(tmp_path, host="far")
    ended = threading.Event()
    alive = threading.Thread(target=storage._keep_touching, args=(epath.Path(tmp_path, LOCK_FILE), b"", ended))
    alive.start()
    try:
        with pytest.raises(StorageError, match=r"in use by process \d+ on far since 2026"):
            reserve(epath.Path(tmp_path)).__enter__()
    finally:
        ended.set()
        alive.join()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "far"


def test_reserve_takes_the_folder_of_another_machine_whose_process_is_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(storage, "_SILENT", 0.02)
    leave_lock(tmp_path, host="far")
    with reserve(epath.Path(tmp_path)):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert "on far since 2026-01-01 00:00:00; waiting" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"host": 1}', "\x00"])
def test_reserve_replaces_a_damaged_lock(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    with reserve(epath.Path(tmp_path)):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_reserve_without_locks_of_the_file_system_asks_for_the_process(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    leave_lock(tmp_path)
    with pytest.raises(StorageError, match=f"in use by process {os.getppid()}"):
        reserve(epath.Path(tmp_path)).__enter__()
    for ended in (2**22 + 1, os.getpid()):  # no process, and this one, as after the restart of a container
        leave_lock(tmp_path, pid=ended)
        with reserve(epath.Path(tmp_path)):
            pass
