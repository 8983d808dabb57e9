"""No name that was read leaves its folder, no reader opens a pipe or device: each is tried with one list of both."""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import fsspec
import msgspec
import numpy as np
import pytest

from datar_jax.atomic_files import atomic_write
from datar_jax.audio.decode import decode
from datar_jax.audio.errors import AudioError
from datar_jax.audio.recording import measure
from datar_jax.checkpoints import pretrained
from datar_jax.checkpoints.integrity import BadCheckpoint, read_metadata, with_checksum
from datar_jax.checkpoints.model_info import ModelError
from datar_jax.config import ConfigError, DataConfig
from datar_jax.data import prepared
from datar_jax.data.csv_table import Table, lines
from datar_jax.data.datasets.base import Annotations, FilePatterns, Segment
from datar_jax.data.prepare.build import _finished, _remove_former
from datar_jax.data.prepare.encode import EncodeOptions, encode_clips
from datar_jax.data.prepare.extract import unpack
from datar_jax.data.prepare.match_files import File, match_files
from datar_jax.data.prepare.partial_files import FetchError
from datar_jax.data.prepare.shard_plan import Part, ShardPlan, shard_key
from datar_jax.data.prepared import DatasetInfo, Shard
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.array_record import open_shards
from datar_jax.data.sources.base import DataError
from datar_jax.data.sources.feature_cache import open_cache
from datar_jax.data.splits import check_heads
from datar_jax.filesystem import storage_path
from datar_jax.foreign_files import UnsafeName
from datar_jax.labels import Head
from tests.data.test_readers import AUDIO, folder_of
from tests.hostile import NAMES, irregular_files

CONTENT = b"what must not be read or changed"


def of_table(folder, name):
    quoted = '"' + name.replace('"', '""') + '"'
    (folder / "manifest.csv").write_text(f"path,label\n{quoted},a\n")
    read_dataset(DataConfig(root=str(folder), kind="csv"))


def of_esc(folder, name):
    (folder / "meta").mkdir()
    (folder / "audio").mkdir()
    (folder / "meta" / "esc.csv").write_text(f'filename,fold,target,category\n"{name}",1,0,a\n')
    read_dataset(DataConfig(root=str(folder), kind="esc"))


def of_list(folder, name):
    (folder / "a").mkdir()
    (folder / "a" / "x.wav").touch()
    (folder / "train.txt").write_text(f"{name}\n")
    (folder / "test.txt").write_text("a/x.wav\n")
    read_dataset(DataConfig(root=str(folder), train_list="train.txt", test_list="test.txt"))


def card(name, heads=()):
    shard = Shard(name, 1, len(CONTENT), "0")
    about = ("corpus", "title", "terms", "single", heads, AUDIO.sample_rate, "pcm", 0, 0, 0, 0, "", {}, (shard,))
    return msgspec.json.encode(DatasetInfo(prepared.FORMAT, *about))


def of_card(folder, name):
    (folder / "corpus.json").write_bytes(card(name))
    (folder / "manifest.csv").write_text(",".join(prepared.MANIFEST_COLUMNS) + "\n")
    dataset = read_dataset(DataConfig(root=str(folder), kind="prepared"))
    open_shards(storage_path(str(folder), "x"), dataset.card, (), AUDIO, folder / "cache")


def of_remote_card(folder, name):
    """The shards of a bucket are copied: a name that leads out overwrites a file."""
    remote = fsspec.filesystem("memory")
    remote.pipe("/bucket/corpus.json", card(name))
    remote.pipe("/bucket/manifest.csv", (",".join(prepared.MANIFEST_COLUMNS) + "\n").encode())
    dataset = read_dataset(DataConfig(root="memory://bucket", kind="prepared"))
    open_shards(storage_path("memory://bucket", "x"), dataset.card, (), AUDIO, folder / "cache")


def of_part(folder, name):
    """What is known of a finished shard goes into the card of the next preparation."""
    plan, options = ShardPlan("train-00000-of-00001.array_record", (), ()), EncodeOptions(AUDIO)
    (folder / "parts").mkdir()
    part = Part(shard_key(plan, options), Shard(name, 0, 0, ""), (), {})
    (folder / "parts" / f"{plan.name}.json").write_bytes(msgspec.json.encode(part))
    if not _finished(storage_path(str(folder), "x"), [plan], options):
        raise ConfigError("it is written anew")


def of_official_list(folder, name):
    (folder / "sounds").mkdir()
    (folder / "sounds" / "x.wav").touch()
    segment = Segment(name, (0,), "train", None, FilePatterns(("{id}",), ("{recording}",)), name)
    match_files(Annotations((segment,), (), "single", ()), storage_path(str(folder / "sounds"), "--audio"), print)


def of_listing(folder, name):
    """A server lists its files: their names are of its making."""
    (reason,) = encode_clips(
        storage_path("memory://bucket", "--audio"), EncodeOptions(AUDIO), [(None, File(f"{name}/x.wav", "", True))]
    )
    raise ConfigError(str(reason))


def of_heads(folder, name):
    """The name of a head begins those of its figures."""
    (folder / "corpus.json").write_bytes(card("a.array_record", (Head(name, ("a", "b")),)))
    (folder / "manifest.csv").write_text(",".join(prepared.MANIFEST_COLUMNS) + "\n")
    dataset = read_dataset(DataConfig(root=str(folder), kind="prepared"))
    check_heads(DataConfig(), dataset)


def of_zip(folder, name):
    with zipfile.ZipFile(folder / "archive", "w") as archive:
        info = zipfile.ZipInfo("name")
        info.filename = name  # as it is, where the constructor would cut it off
        archive.writestr(info, b"bad")
    unpack(folder / "archive", folder / "unpacked")


def of_tar(folder, name, mode="w"):
    with tarfile.open(folder / "archive", mode, format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("name")
        info.pax_headers, info.size = {"path": name}, 3
        archive.addfile(info, io.BytesIO(b"bad"))
    unpack(folder / "archive", folder / "unpacked")


def of_tar_gz(folder, name):
    of_tar(folder, name, "w:gz")


def of_exported_parameters(folder, name):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as writer:
        writer.save(folder.absolute() / "params", {"kernel": np.zeros(3)})
    path = folder / "params" / "_METADATA"
    keys = {"key_metadata": [{"key": name, "key_type": 2}]}
    about = json.loads(path.read_text())
    (values,) = about["tree_metadata"].values()
    path.write_text(json.dumps({**about, "use_ocdbt": False, "tree_metadata": {str((name,)): {**values, **keys}}}))
    pretrained.read_params(folder / "params")


def of_checkpoint(folder, name):
    pretrained._weights(folder, {f"params/{name}": {"shape": [3], "dtype": "float32", "crc": {}}})


def of_torch_file(folder, name):
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX%s%sX\3\0\0\0cpuK\1tQ"
    text = name.encode()
    pickled = b"\x80\2}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n("
    pickled += storage % (len(text).to_bytes(4, "little"), text) + b"K\0K\1\x85K\1\x85\x89NtRs."
    with zipfile.ZipFile(folder / "w.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    pretrained.load_pretrained(folder / "w.pth")


def of_onnx(folder, name):
    """Weights beside an ONNX file, which name their file."""
    from onnx import TensorProto, helper

    from datar_jax.export.onnx import from_onnx

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=name)
    inputs, outputs = (helper.make_tensor_value_info(x, TensorProto.FLOAT, [8]) for x in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [inputs], [outputs], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    try:
        from_onnx(model.SerializeToString())
    except ValueError as error:
        raise ModelError(str(error)) from None


SHARD, PROGRAM = "is not the name of a shard", "not an ONNX file that onnxruntime reads"
REASON = "may lead out of its folder|cannot be the name of a file"
READERS = {  # and the reasons that each gives beside that one
    of_table: "invisible character",
    of_esc: "",
    of_list: "is in no class folder",
    of_card: SHARD,
    of_remote_card: SHARD,
    of_part: "it is written anew",
    of_official_list: "none of the 1 clips of the lists is there",
    of_listing: "cannot be read",
    of_heads: "give each a word of its own",
    of_zip: "",
    of_tar: "",
    of_tar_gz: "",
    of_exported_parameters: "",
    of_checkpoint: "",
    of_torch_file: "has no archive/data/",
    of_onnx: PROGRAM,
}


def tree(folder, but):
    """Everything in a folder apart from one of its folders."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and but not in path.parents}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_no_reader_follows_a_name_out_of_its_folder(reader, tmp_path, monkeypatch):
    for i, (kind, name) in enumerate(NAMES.items()):
        home = tmp_path / str(i)
        folder = home / "in"
        folder.mkdir(parents=True)
        (home / "outside").write_bytes(CONTENT)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))  # onnxruntime writes to it
        monkeypatch.chdir(folder)  # where onnxruntime would look
        before = tree(home, folder)
        with pytest.raises((ConfigError, FetchError, ModelError, UnsafeName)) as caught:
            reader(folder, name.replace("ABSOLUTE", str(home)))
        assert re.search("|".join(filter(None, (REASON, READERS[reader]))), str(caught.value)), (kind, caught.value)
        assert "\n" not in str(caught.value), kind
        assert tree(home, folder) == before, kind


def test_former_shards_are_removed_from_their_own_folder_alone(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_bytes(CONTENT)
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "parts" / "link").symlink_to(tmp_path / "home")
    (tmp_path / "out" / "mine").write_bytes(CONTENT)
    (tmp_path / "out" / "parts" / "mine").touch()
    for name in ("train-00000-of-00001.array_record", "parts/train-00000-of-00001.array_record.json"):
        (tmp_path / "out" / name).touch()
    lines = []
    _remove_former(storage_path(str(tmp_path / "out"), "x"), [], lines.append)
    (line,) = lines
    assert line.endswith("train-00000-of-00001.array_record")
    assert (tmp_path / "home" / "letter").read_bytes() == (tmp_path / "out" / "mine").read_bytes() == CONTENT
    assert not (tmp_path / "out" / "train-00000-of-00001.array_record").exists()


def as_cache(folder, path):
    """A cache with a pipe in it is computed again."""
    sounds = read_dataset(DataConfig(root=str(folder_of(folder, ("a", "b"), 1))))
    cache = folder.parent / "cache"
    open_cache(sounds, AUDIO, cache)
    lines = []
    for each in sorted(cache.iterdir()):
        each.unlink()
        each.symlink_to(path)
        open_cache(sounds, AUDIO, cache, None, lines.append)
    assert len(lines) == 2
    raise ConfigError(lines[0])


def as_shard(folder, path):
    (folder / "a.array_record").symlink_to(path)
    about = msgspec.json.decode(card("a.array_record").replace(b'"size":32', b'"size":0'), type=DatasetInfo)
    open_shards(storage_path(str(folder), "x"), about, (), AUDIO, folder)


def as_prepared(name):
    def read(folder, path):
        (folder / "corpus.json").write_bytes(card("a.array_record"))
        (folder / "manifest.csv").write_text(",".join(prepared.MANIFEST_COLUMNS) + "\n")
        (folder / name).unlink()
        (folder / name).symlink_to(path)
        read_dataset(DataConfig(root=str(folder), kind="prepared"))

    return read


def as_description(folder, path):
    (folder / "model.json").symlink_to(path)
    (folder / "params").mkdir()
    pretrained.load_pretrained(folder)


def as_checkpoint(folder, path):
    (folder / "2" / "meta").mkdir(parents=True)
    (folder / "2" / "meta" / "metadata").symlink_to(path)
    read_metadata(folder, 2)


def as_parameters(folder, path):
    """orbax opens what lies in its folder."""
    (folder / "params").mkdir()
    (folder / "params" / "_METADATA").symlink_to(path)
    pretrained.read_params(folder / "params", {"kernel": "float32[3] 00000000"})


def as_state(folder, path):
    (folder / "2" / "meta").mkdir(parents=True)
    (folder / "2" / "state").mkdir()
    (folder / "2" / "state" / "_METADATA").symlink_to(path)
    leaves = {"params/kernel": {"shape": [3], "dtype": "float32", "crc": {}}}
    about = with_checksum({"step": 2, "data": {}, "run": {}, "score": None, "leaves": leaves})
    (folder / "2" / "meta" / "metadata").write_text(json.dumps(about))
    pretrained._from_checkpoint(folder, None)


def as_program(folder, path):
    model = pretrained.PretrainedModel(str(folder), None, None, path)
    model.read_program()


PATHS = {
    "description": as_description,
    "checkpoint": as_checkpoint,
    "parameters": as_parameters,
    "state": as_state,
    "program": as_program,
    "sound": lambda folder, path: decode(path, 8_000),
    "recording": lambda folder, path: measure(path, AUDIO),
    "table": lambda folder, path: Table(path, ("path",)),
    "list": lambda folder, path: list(lines(path)),
    "archive": lambda folder, path: unpack(path, folder / "unpacked"),
    "card": as_prepared("corpus.json"),
    "manifest": as_prepared("manifest.csv"),
    "shard": as_shard,
    "cache": as_cache,
}


@pytest.mark.parametrize("reader", PATHS.values(), ids=PATHS)
def test_no_reader_opens_a_pipe_or_a_device(reader, tmp_path):
    with irregular_files(tmp_path / "odd") as paths:
        for i, path in enumerate(paths):
            folder = tmp_path / str(i) / "data"
            folder.mkdir(parents=True)
            with pytest.raises((ConfigError, FetchError, AudioError, DataError, ModelError, BadCheckpoint)) as caught:
                reader(folder, path)
            assert "\n" not in str(caught.value)
            atomic_write(folder / "file", b"new")
            (folder / ".file.0000.partial").symlink_to(path)
            atomic_write(folder / "file", b"newer")  # looks at the partial files of killed writers
