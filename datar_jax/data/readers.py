"""Reads data sets: folders, CSV lists, the ESC layout, prepared shards.

Only names and lists are read here, never a sound: a listed file that is missing is a clip like any other, until the
feature cache finds it unusable and reports it. Errors in a list name the file, the row and the column.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.config import ConfigError, DataConfig
from datar_jax.data import prepared as shards
from datar_jax.data.csv_table import Table, lines, listed_file
from datar_jax.data.dataset import SPLITS, Clip, Dataset, similar_labels_note
from datar_jax.data.root import data_root
from datar_jax.data.split_folders import Levels, beside_splits, split_levels, split_names
from datar_jax.data.unlisted import unlisted_note
from datar_jax.escaping import from_csv_cell, printable
from datar_jax.filesystem import storage_path, walk_folders
from datar_jax.wording import count


def read_dataset(config: DataConfig, base: Path | None = None) -> Dataset:
    """Reads the lists or the folder tree of a data set.

    Args:
      config: where and of which kind the data are.
      base: folder that a relative `data.root` starts from; the current one by default.

    Raises:
      ConfigError: the data cannot be found or a list cannot be used; names the field, or the file, row and column.
    """
    root = data_root(config, base)
    if config.kind == "prepared":
        return _with_groups(_read_prepared(config.root), config.group)
    dataset = {"folder": _read_folder, "csv": _read_manifest, "esc": _read_esc}[config.kind](root, config)
    if config.train_list:
        if config.kind != "folder":
            raise ConfigError(f"data.train_list={config.train_list!r}: needs data.kind='folder', not {config.kind!r}")
        dataset = _with_lists(dataset, root, config)
    if not dataset.clips:
        raise ConfigError(f"data.root={config.root!r}: no sound is listed in {dataset.source}; is it the right folder?")
    dataset = dataclasses.replace(dataset, notes=dataset.notes + similar_labels_note(dataset.labels))
    return _with_groups(dataset, config.group)


def _read_folder(root: Path, config: DataConfig) -> Dataset:
    """Class = sub-folder; sounds may lie at any depth below it.

    Folders that are all named as splits (train, test, ...), above or below those of the classes, are the splits.
    """
    there = list(_walk(root))
    sounds = [name for name in there if Path(name).suffix.lower() in SUFFIXES]
    names = [name for name in sounds if "/" in name]
    if not config.train_list and (levels := split_levels(names)):
        return _read_split_folders(root, config, names, levels)
    if not config.train_list and (beside := beside_splits(names)):
        remedy = f"but {beside[0]} is not; move it away, or give lists (data.train_list, data.test_list)"
        raise ConfigError(f"data.root={config.root!r}: some of its folders are named as splits, {remedy}")
    files: dict[str, list[str]] = defaultdict(list)
    for name in names:
        files[_class(name)].append(name)
    others, loose = len(there) - len(sounds), len(sounds) - len(names)
    labels = tuple(sorted(files))
    classes = [_class(p.name) for p in root.iterdir() if p.is_dir() and p.name[0] != "."]
    empty = sorted(label for label in classes if label not in files)
    if not labels:
        raise ConfigError(
            f"data.root={config.root!r}: no sound in any sub-folder ({count(loose, 'sound')} beside the "
            f"sub-folders, {count(others, 'file')} of another kind); give a folder with one sub-folder per class"
        )
    notes = (
        f"{count(others, 'file is no sound', 'files are no sounds')}, by their ending" if others else "",
        f"{count(loose, 'sound lies', 'sounds lie')} in {root} itself, outside every class" if loose else "",
        f"sub-folders without a sound: {', '.join(empty)}" if empty else "",
    )
    clips = (Clip(str(root / name), _nfc(name), (i,)) for i, label in enumerate(labels) for name in files[label])
    return Dataset(
        tuple(sorted(clips, key=lambda clip: clip.name)), labels, (), str(root), tuple(note for note in notes if note)
    )


def _read_split_folders(root: Path, config: DataConfig, names: list[str], levels: Levels) -> Dataset:
    """Class = sub-folder of a split's folder, or the other way round."""
    parts = [name.split("/") for name in names]
    splits = split_names({each[levels.split] for each in parts})
    loose = next((name for name, each in zip(names, parts) if len(each) < levels.label + 2), None)
    if loose:
        raise ConfigError(
            f"data.root={config.root!r}: its folders {', '.join(sorted(splits))} are named as splits, but {loose} lies "
            "in none of a class; give train/CLASS/..., or lists (data.train_list, data.test_list)"
        )
    labels = tuple(sorted({_class(each[levels.label]) for each in parts}))
    index = {label: i for i, label in enumerate(labels)}
    clips = tuple(
        Clip(str(root / name), _nfc(name), (index[_class(each[levels.label])],), split=splits[each[levels.split]])
        for name, each in zip(names, parts)
    )
    counts = Counter(clip.split for clip in clips)
    note = "; ".join(f"{folder}/ is the {split} split" for folder, split in sorted(splits.items()))
    note += f" ({', '.join(f'{counts[split]} {split}' for split in SPLITS if counts[split])})"
    return Dataset(tuple(sorted(clips, key=lambda clip: clip.name)), labels, (), str(root), (note,))


def _class(name: str) -> str:
    """The class of a path below the root: its first folder."""
    return printable(_nfc(name.partition("/")[0]))


def _walk(root: Path) -> Iterator[str]:
    """Names of all files below `root`.

    An empty folder that is named like a sound comes as one, so that it is reported and not passed over.

    Raises:
      ConfigError: a folder cannot be read.
    """
    for folder, inner, names in walk_folders(root):
        below = folder.relative_to(root)
        yield from ((below / name).as_posix() for name in names)
        if not inner and not names and len(below.parts) > 1 and below.suffix.lower() in SUFFIXES:
            yield below.as_posix()


def _read_manifest(root: Path, config: DataConfig) -> Dataset:
    """A table with the columns path, label and optionally split or fold, start, end (seconds)."""
    manifest = _listed(root / config.manifest, "data.manifest")
    table = Table(manifest, ("path", "label"), ("split", "fold", "start", "end"))
    if {"split", "fold"} <= table.columns:
        raise ConfigError(f"{table.path}: has both columns split and fold; keep one")
    rows: list[tuple[int, str, str, list[str], float, float, str | None, int | None]] = []
    first: dict[tuple[str, float, float], int] = {}
    for row in table.rows():
        for column in ("path", "label"):
            if invisible := next(filter(_is_invisible, row[column]), ""):
                table.fail(column, f"holds the invisible character U+{ord(invisible):04X}; remove it")
        names = [name for part in row["label"].split(";") if (name := _nfc(part.strip()))]
        if not names and config.labels == "single":
            table.fail("label", "give a class name; a background clip without any needs data.labels='multi'")
        if len(names) > 1 and config.labels == "single":
            table.fail("label", f"{len(names)} classes; give one, or set data.labels to 'multi'")
        start = table.real("start")
        end = table.real("end")
        if start < 0 or (end and end <= start):
            table.fail("end" if start >= 0 else "start", f"a part from {start:g} s to {end:g} s is empty")
        split = row.get("split")
        if split is not None and split not in SPLITS:
            table.fail("split", f"give one of {', '.join(SPLITS)}")
        fold = table.whole("fold", 1) if "fold" in table.columns else None
        if not row["path"]:
            table.fail("path", "give a file, relative to data.root")
        name = _nfc(row["path"])
        path = table.file("path", root, name)
        if "\\" in name and not path.exists():
            table.fail("path", "no such file; give / in place of the backslash")
        key = (name, start, end)
        if key in first:
            table.fail("path", f"the same sound as row {first[key]}; keep one, with `;` between its labels")
        first[key] = table.row
        rows.append((table.row, str(path), name, names, start, end, split, fold))
    labels = tuple(sorted({name for row in rows for name in row[3]}))
    if rows and not labels:
        raise ConfigError(f"{table.path}: no row has a label; give class names in the column label")
    number = {name: i for i, name in enumerate(labels)}
    clips = tuple(
        Clip(path, name, tuple(sorted({number[n] for n in names})), row, fold, split, start, end)
        for row, path, name, names, start, end, split, fold in rows
    )
    folds = tuple(sorted({clip.fold for clip in clips if clip.fold is not None}))
    return Dataset(clips, labels, folds, str(table.path), unlisted_note(root, (name for name, *_ in first)))


def _read_esc(root: Path, config: DataConfig) -> Dataset:
    """The layout of ESC-50: one table in meta/ (filename, fold, target, category), the sounds in audio/."""
    tables = sorted((root / "meta").glob("*.csv"))
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables) or "none"
        raise ConfigError(f"data.root={config.root!r}: needs one table meta/*.csv, found {names}; is it an ESC folder?")
    table = Table(tables[0], ("filename", "fold", "target", "category"), None)
    subset = config.subset if config.subset in table.columns else ""
    there = {path.name for path in (root / "audio").glob("*")}
    stems = {Path(name).stem: name for name in sorted(there) if Path(name).suffix.lower() in SUFFIXES}
    rows: list[tuple[int, str, int, int]] = []
    classes: dict[int, str] = {}
    listed: list[str] = []
    for row in table.rows():
        name = row["filename"] if row["filename"] in there else stems.get(Path(row["filename"]).stem, row["filename"])
        table.file("filename", root / "audio", name)
        listed.append(f"audio/{name}")
        if subset and row[subset].lower() != "true":
            continue
        target = table.whole("target", 0)
        if classes.setdefault(target, row["category"]) != row["category"]:
            table.fail("category", f"target {target} is {classes[target]!r} in an earlier row")
        rows.append((table.row, listed[-1], target, table.whole("fold", 1)))
    number = {target: i for i, target in enumerate(sorted(classes))}
    clips = tuple(Clip(str(root / name), name, (number[t],), row, fold) for row, name, t, fold in rows)
    labels = tuple(classes[target] for target in sorted(classes))
    notes = (f"{len(listed) - len(rows)} of {len(listed)} rows are outside the subset {subset}",) if subset else ()
    folds = tuple(sorted({fold for *_, fold in rows}))
    return Dataset(clips, labels, folds, str(table.path), notes + unlisted_note(root, listed))


def _read_prepared(root: str) -> Dataset:
    """Reads a folder that `datar-jax prepare` wrote: all available clips of its manifest."""
    folder = storage_path(root, "data.root")
    card = shards.read_card(folder)
    names = [label for head in card.heads for label in head.classes]
    number = {shard.name: i for i, shard in enumerate(card.shards)}
    labels: dict[str, tuple[int, ...]] = {}  # equal ones are one
    clips = []
    with (folder / shards.MANIFEST).as_local() as path:
        renamed = {"side": "split"}  # as version 0.1 wrote it
        table = Table(path, shards.MANIFEST_COLUMNS, [shards.CHECKSUM], renamed=renamed)
        for row in table.rows():
            if row["status"] != shards.FOUND:
                continue
            if row["shard"] not in number:
                table.fail("shard", "not one of corpus.json; prepare the data again")
            if row["labels"] not in labels:
                numbers = row["labels"].split()
                if not all(each.isdecimal() and len(each) < 10 and int(each) < len(names) for each in numbers):
                    table.fail("labels", f"give numbers of the {len(names)} classes of {shards.CARD}")
                labels[row["labels"]] = tuple(map(int, numbers))
            if row["split"] not in ("", *SPLITS):
                table.fail("split", f"give one of {', '.join(SPLITS)}")
            clip = Clip(
                card.shards[number[row["shard"]]].name,
                from_csv_cell(row["id"]),
                labels[row["labels"]],
                fold=table.whole("fold", 1) if row["fold"] else None,
                split=sys.intern(row["split"]) or None,
                record=table.whole("record", 0),
                samples=table.whole("samples", 1),
                crc32=table.checksum(shards.CHECKSUM) if row.get(shards.CHECKSUM) else None,
            )
            clips.append(clip)
    if len(clips) != card.here:
        many = f"{len(clips)} clips, {shards.CARD} says {card.here}"
        raise ConfigError(f"{folder.url}/{shards.MANIFEST}: {many}; prepare the data again")
    folds = tuple(sorted({clip.fold for clip in clips if clip.fold is not None}))
    source, notes = f"{folder.url}/{shards.MANIFEST}", (shards.summary(card),)
    return Dataset(tuple(clips), tuple(names), folds, source, notes, card.heads, card)


def _with_lists(dataset: Dataset, root: Path, config: DataConfig) -> Dataset:
    """Keeps the clips that the two list files name, each with its split."""
    clips = {clip.name: clip for clip in dataset.clips}
    listed: dict[str, str] = {}
    for field, split in (("train_list", "train"), ("test_list", "test")):
        path = _listed(root / getattr(config, field), f"data.{field}")
        for row, line in enumerate(lines(path), start=1):
            name = _nfc(line.strip().removeprefix("./"))
            if not name:
                continue
            if name in listed:
                raise ConfigError(f"{path}, row {row}: {name} is listed twice; keep one")
            if name not in clips:
                if (label := _class(name)) not in dataset.labels:
                    raise ConfigError(f"{path}, row {row}: {name} is in no class folder; give paths below {root}")
                file = listed_file(f"{path}, row {row}", root, name)
                clips[name] = Clip(str(file), name, (dataset.labels.index(label),))
            listed[name] = split
    left = len(clips) - len(listed)
    note = (f"{count(left, 'sound is', 'sounds are')} in neither list",)
    return dataclasses.replace(
        dataset,
        clips=tuple(dataclasses.replace(clips[name], split=listed[name]) for name in sorted(listed)),
        notes=dataset.notes + (note if left else ()),
    )


def _with_groups(dataset: Dataset, pattern: str) -> Dataset:
    """Sets each clip's group: the match of `pattern` in its name, else its file."""
    if not pattern:
        return dataset
    finds = [re.search(pattern, clip.name) for clip in dataset.clips]
    found = sum(find is not None for find in finds)
    if not found:
        raise ConfigError(f"data.group={pattern!r}: found in no path, for instance not in {dataset.clips[0].name!r}")
    clips = tuple(
        dataclasses.replace(clip, group=clip.name if find is None else find[min(1, find.re.groups)] or find[0])
        for clip, find in zip(dataset.clips, finds)
    )
    left = len(clips) - found
    note = (f"data.group={pattern!r} is not found in {left} of {len(clips)} paths: each is its own group",)
    return dataclasses.replace(dataset, clips=clips, notes=dataset.notes + (note if left else ()))


def _nfc(name: str) -> str:
    """Unicode NFC form: file systems differ in how they store accents."""
    return unicodedata.normalize("NFC", name)


def _is_invisible(character: str) -> bool:
    """Whether a character makes two names look alike; the joiners of some scripts and of emoji do not count."""
    return unicodedata.category(character) in ("Cc", "Cf") and character not in "\u200c\u200d"


def _listed(path: Path, field: str) -> Path:
    """Path of a list file that a setting names; raises ConfigError if it is not there."""
    if not path.is_file():
        raise ConfigError(f"{field}={path.name!r}: no such file ({path}); give a path relative to data.root")
    return path
