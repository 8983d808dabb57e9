"""An archive unpacks into its folder and nowhere else, whole or not at all."""

import contextlib
import errno
import fcntl
import gzip
import io
import os
import resource
import shutil
import stat
import struct
import tarfile
import tracemalloc
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datar_jax.data.prepare import extract as module
from datar_jax.data.prepare.extract import unpack
from datar_jax.data.prepare.partial_files import FetchError
from tests.data.prepare.server import CONTENT, fails, names, umask

TREE = {"meta/list.csv": b"a,b\n", "audio/1.wav": CONTENT[:70_000], "audio/deep/er/2.wav": b"", "read me": b"x" * 512}


def tar_of(path, tree=TREE, mode="w:gz", members=()):
    """A tar of files by name and content, after `members`: tuples of fields of TarInfo and a content."""
    with tarfile.open(path, mode) as archive:
        for fields, content in members:
            info = tarfile.TarInfo("name")
            for name, value in fields.items():
                setattr(info, name, value)
            info.size = fields.get("size", len(content))
            archive.addfile(info, io.BytesIO(content))
        for name, content in tree.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zip_of(path, tree=TREE, members=()):
    """A zip of files by name and content, after `members`: tuples of fields of ZipInfo and a content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for fields, content in members:
            info = zipfile.ZipInfo("name")
            for name, value in fields.items():
                setattr(info, name, value)
            archive.writestr(info, content)
        for name, content in tree.items():
            archive.writestr(name, content)
    return path


def tree_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def everything(folder):
    return {str(p.relative_to(folder)): p.lstat().st_mode for p in sorted(Path(folder).rglob("*"))}


def refused(archive, *parts):
    """Unpacks what must be refused; nothing changes anywhere around it."""
    around = archive.parent
    before = everything(around), tree_of(around)
    text = fails(lambda: unpack(archive, around / "out" / "sounds"), str(archive), *parts)
    assert not (around / "out" / "sounds").exists()
    assert names(around / "out") == []
    (around / "out").rmdir()
    assert (everything(around), tree_of(around)) == before
    return text


KINDS = {
    "sounds.zip": zip_of,
    "sounds.tar": lambda path, *rest, **more: tar_of(path, *rest, mode="w", **more),
    "sounds.tar.gz": tar_of,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_unpacks_whatever_it_is_called(tmp_path, kind):
    archive = KINDS[kind](tmp_path / "archive", {f"./{name}": content for name, content in TREE.items()})
    folder = tmp_path / "new" / "sounds"
    assert unpack(archive, folder) == folder
    assert tree_of(folder) == TREE
    assert names(folder.parent) == ["sounds"]
    assert (folder / "meta").stat().st_mode & 0o777 == 0o777 & ~umask()


def test_what_was_unpacked_before_is_left_as_it_is(tmp_path):
    archive, folder = zip_of(tmp_path / "a.zip"), tmp_path / "sounds"
    unpack(archive, folder)
    (folder / "read me").write_text("mine")
    archive.unlink()
    assert unpack(archive, folder) == folder
    assert (folder / "read me").read_text() == "mine"


def test_an_empty_folder_is_filled_also_behind_a_link(tmp_path):
    archive = zip_of(tmp_path / "a.zip")
    (tmp_path / "disk" / "far").mkdir(parents=True)
    (tmp_path / "sounds").symlink_to(tmp_path / "disk" / "far")
    assert unpack(archive, tmp_path / "sounds") == tmp_path / "sounds"
    assert tree_of(tmp_path / "disk" / "far") == TREE
    (tmp_path / "file").touch()
    fails(lambda: unpack(archive, tmp_path / "file"), "no folder")


def test_permissions_of_an_archive_are_left(tmp_path):
    archive = tar_of(tmp_path / "a", {}, members=[({"mode": 0o6777}, b"x")])
    assert stat.S_IMODE((unpack(archive, tmp_path / "sounds") / "name").stat().st_mode) == 0o666 & ~umask()
    archive = zip_of(tmp_path / "b", {}, members=[({"external_attr": (stat.S_IFREG | 0o6777) << 16}, b"x")])
    assert stat.S_IMODE((unpack(archive, tmp_path / "more") / "name").stat().st_mode) == 0o666 & ~umask()


LINKS = [
    {"type": tarfile.SYMTYPE, "linkname": "/etc"},
    {"type": tarfile.SYMTYPE, "linkname": ".."},
    {"type": tarfile.SYMTYPE, "linkname": "good"},
    {"type": tarfile.LNKTYPE, "linkname": "/etc/hostname"},
    {"type": tarfile.LNKTYPE, "linkname": "good"},
    {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
    {"type": tarfile.BLKTYPE},
    {"type": tarfile.FIFOTYPE},
    {"type": b"?"},
    {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}},
]


@pytest.mark.parametrize("fields", LINKS)
def test_a_tar_of_links_or_devices_is_refused(tmp_path, fields):
    content = b"1\n0\n9\n".ljust(512, b"\0") + b"sparse123" if "pax_headers" in fields else b""
    archive = tar_of(tmp_path / "a", {"good": b"x", "name/hostname": b"bad"}, members=[(fields, content)])
    assert "damaged" not in refused(archive, "link, a device or sparse")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_zip_of_links_or_devices_is_refused(tmp_path, kind):
    archive = zip_of(tmp_path / "a", members=[({"external_attr": (kind | 0o777) << 16, "create_system": 3}, b"/etc")])
    refused(archive, "link or a device")


def test_a_zip_encrypted_or_packed_in_an_uncommon_way_is_refused(tmp_path):
    refused(zip_of(tmp_path / "a", members=[({"compress_type": zipfile.ZIP_LZMA}, b"x")]), "uncommon")
    archive = zip_of(tmp_path / "a", {"x": b"x"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    refused(archive, "encrypted")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second", ["one", "./one", "one/two", "one/two/three"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_member_overwrites_another(tmp_path, kind, second):
    fields = {"zip": {"filename": "one"}}.get(kind[-3:], {"name": "one"})
    archive = KINDS[kind](tmp_path / kind, {second: b"bad"}, members=[(fields, b"good")])
    refused(archive, "twice")


def test_names_that_differ_in_case_are_two_files_where_the_disk_has_it_so(tmp_path):
    tree = {"A": b"1", "a": b"2"}
    (tmp_path / "Probe").touch()
    archive = zip_of(tmp_path / "z", tree)
    if (tmp_path / "probe").exists():
        refused(archive, "twice")
    else:
        assert tree_of(unpack(archive, tmp_path / "sounds")) == tree


@pytest.mark.parametrize("kind", ["sounds.zip", "sounds.tar.gz"])
def test_a_bomb_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(module, "FLOOR", 0)
    refused(KINDS[kind](tmp_path / kind, {"bomb": bytes(3_000_000)}), "100 times")
    monkeypatch.setattr(module, "EACH", 1 << 20)
    refused(KINDS[kind](tmp_path / kind, {f"{i}": b"" for i in range(20)}), "100 times")


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=50_000))
    refused(zip_of(tmp_path / "a.zip"), "0.1 MB that fit; make room")


def test_a_zip_that_lies_about_sizes_or_overlaps_is_refused(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "a", {"x": bytes(1_000_000)})
    data = archive.read_bytes()
    at = data.index(b"PK\1\2")
    archive.write_bytes(data[: at + 24] + struct.pack("<I", 10) + data[at + 28 :])
    refused(archive, "damaged")

    monkeypatch.setattr(module, "FLOOR", 0)
    archive = zip_of(tmp_path / "a", {"x": CONTENT[:100_000]})  # each of 300 entries is the same file
    data = archive.read_bytes()
    at, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entry, tail = data[at:end], data[end:]
    tail = tail[:8] + struct.pack("<HHII", 300, 300, 300 * len(entry), at) + tail[20:]
    archive.write_bytes(data[:at] + b"".join(entry[:46] + entry[46:] for _ in range(300)) + tail)
    refused(archive)


def header(kind, size, name=b"././@LongLink"):
    info = tarfile.TarInfo(name.decode())
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_does_not_fill_the_memory(tmp_path, kind):
    with gzip.open(tmp_path / "a", "wb", 1) as file:
        file.write(header(kind, 1 << 33))
        for _ in range(64):
            file.write(bytes(1 << 20))
    refused(tmp_path / "a", "beyond all measure")


def test_what_lies_between_contents_is_counted_anew_after_each(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BETWEEN", 30_000)  # less than any of these together
    folders = [({"name": f"folder{i}", "type": tarfile.DIRTYPE}, b"") for i in range(100)]
    archive = tar_of(tmp_path / "a", {**TREE, "more": CONTENT[:70_000]}, members=folders)
    assert tree_of(unpack(archive, tmp_path / "sounds")) == {**TREE, "more": CONTENT[:70_000]}
    assert (tmp_path / "sounds" / "folder99").is_dir()


def test_memory_does_not_grow_with_what_comes_out(tmp_path):
    with gzip.open(tmp_path / "a", "wb", 1) as file:  # 60 MB of headers that hold for all members below them
        for i in range(600):
            file.write(tarfile.TarInfo.create_pax_global_header({f"key{i}": "x" * 100_000}))
            file.write(header(tarfile.REGTYPE, 0, b"name%d" % i))
        file.write(bytes(1024))
    tracemalloc.start()
    unpack(tmp_path / "a", tmp_path / "sounds")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(names(tmp_path / "sounds")) == 600
    assert peak < 10e6 + 10 * (tmp_path / "a").stat().st_size  # as docs/guides/reliability.md promises


def test_what_follows_the_end_does_not_go_on_for_ever(tmp_path):
    archive = tar_of(tmp_path / "a", mode="w")
    packed = gzip.compress(archive.read_bytes() + bytes(1 << 23))
    archive.write_bytes(packed)
    refused(archive, "beyond all measure")


def test_sizes_below_nothing_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(header(tarfile.REGTYPE, -512, b"x") + bytes(2048))
    refused(tmp_path / "a", "negative size")
    refused(tar_of(tmp_path / "a", members=[({"pax_headers": {"size": "-1024"}}, b"x" * 2000)]), "damaged")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_cut_off_anywhere_is_refused(tmp_path, kind):
    data = KINDS[kind](tmp_path / kind).read_bytes()
    last = data.rindex(b"x" * 512) + 512 if kind == "sounds.tar" else len(data) - 1  # two blocks of zeros and padding
    cuts = {*range(0, last, 5000), *range(0, min(last, 3000), 512), last - 1, last}
    for cut in sorted(cuts):
        (tmp_path / kind).write_bytes(data[:cut])
        refused(tmp_path / kind)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(tar_of(tmp_path / "a", mode="w").read_bytes())
    data[data.index(b"read me")] ^= 1
    (tmp_path / "a").write_bytes(data)
    refused(tmp_path / "a", "bad checksum")


@pytest.mark.parametrize("kind", ["sounds.zip", "sounds.tar.gz"])
def test_an_archive_damaged_anywhere_is_refused_or_the_same(tmp_path, kind):
    tree = {name: content[:3000] for name, content in TREE.items()}
    data = KINDS[kind](tmp_path / kind, tree).read_bytes()
    rng = np.random.default_rng(0)
    same = 0
    for _ in range(100):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        (tmp_path / kind).write_bytes(damaged)
        with contextlib.suppress(FetchError):
            folder = unpack(tmp_path / kind, tmp_path / "out" / "sounds")
            # times, comments and the like are in no checksum; in a zip, neither are names nor what is listed
            same += tree_of(folder) == tree
            assert {*tree_of(folder).values()} <= {*tree.values()}
            shutil.rmtree(folder)
        assert names(tmp_path / "out") == []
        assert names(tmp_path) == ["out", kind]
    assert same < 50


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", bytes(2048), b"PK\3\4", b"\x1f\x8b", gzip.compress(b"x", mtime=0)]
)
def test_what_is_no_archive_is_reported(tmp_path, content):
    (tmp_path / "sounds.zip").write_bytes(content)
    refused(tmp_path / "sounds.zip", "move it away and run the same command")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_nothing_is_refused(tmp_path, kind):
    refused(KINDS[kind](tmp_path / kind, {}), "no file")


def test_an_archive_that_is_not_there_is_reported(tmp_path):
    fails(lambda: unpack(tmp_path / "a.zip", tmp_path / "sounds"), "a.zip", os.strerror(errno.ENOENT))
    assert names(tmp_path) == []


def test_an_interrupted_unpacking_leaves_nothing_and_is_done_again(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "a.zip")
    order = []

    def stop(*_):
        order.append("renamed")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "sync", lambda: order.append("synced"))
        patched.setattr(os, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, tmp_path / "sounds")
    assert order == ["synced", "renamed"]
    assert names(tmp_path) == ["a.zip"]
    (tmp_path / ".sounds.partial" / "of a killed one").mkdir(parents=True)
    (tmp_path / ".sounds.lock").touch()
    assert tree_of(unpack(archive, tmp_path / "sounds")) == TREE
    assert names(tmp_path) == ["a.zip", "sounds"]


def test_a_full_disk_leaves_nothing_of_what_was_unpacked(tmp_path):
    archive = zip_of(tmp_path / "a.zip")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        fails(lambda: unpack(archive, tmp_path / "sounds"), os.strerror(errno.EFBIG), "make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["a.zip"]


def test_a_second_process_does_not_unpack_at_the_same_time(tmp_path):
    archive = zip_of(tmp_path / "a.zip")
    with (tmp_path / ".sounds.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fails(lambda: unpack(archive, tmp_path / "sounds"), "another process")
    assert tree_of(unpack(archive, tmp_path / "sounds")) == TREE
