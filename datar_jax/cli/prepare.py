"""`prepare`: writes ArrayRecord shards of a published data set from its official lists and sounds."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from datar_jax.cli.options import make_parser, path, positive_int, report
from datar_jax.config import AudioConfig, ConfigError
from datar_jax.config import loader as settings
from datar_jax.config.base import did_you_mean
from datar_jax.progress import Progress

if TYPE_CHECKING:
    from datar_jax.data.datasets.base import DatasetSpec

USAGE = (
    "datar-jax prepare NAME (--lists=DIR --audio=DIR | --fetch=DIR) --out=DIR [--config=configs/NAME.py] "
    "[--config.audio.field=value ...] [--coding=pcm|flac] [--shard-clips=2048] [--workers=N]"
)
SUMMARY = "Writes the shards of a published data set. The same command continues where it was stopped."
EXAMPLE = "datar-jax prepare esc50 --fetch=downloads --out=prepared/esc50"


def main(arguments: list[str]) -> int:
    """Writes the shards of a data set, or continues to.

    Raises:
      ConfigError: an invalid option, lists that cannot be used, or missing sounds.
    """
    from datar_jax.data.datasets import CORPORA
    from datar_jax.data.prepare.build import build_dataset
    from datar_jax.data.prepare.download import fetch
    from datar_jax.data.prepare.encode import EncodeOptions
    from datar_jax.data.prepare.extract import unpack
    from datar_jax.data.prepare.partial_files import FetchError
    from datar_jax.data.prepared import MANIFEST, summary
    from datar_jax.data.sources.base import DataError
    from datar_jax.filesystem import storage_path
    from datar_jax.terminal import Console

    given, rest = _parser(", ".join(CORPORA)).parse_known_args(arguments)
    if given.name not in CORPORA:
        raise ConfigError(
            f"{given.name}: unknown data set; {did_you_mean(given.name, CORPORA)}choose one of {', '.join(CORPORA)}"
        )
    spec = CORPORA[given.name]
    options = EncodeOptions(_front_end(given, rest, spec), given.coding, given.shard_clips, given.workers)

    console = Console()
    lists, sounds, out = given.lists, given.audio, storage_path(given.out, "--out")
    try:
        with Progress() as progress:

            def log(line: str) -> None:
                with progress.aside():
                    console.say(line)

            for download in spec.downloads if given.fetch else ():
                archive = fetch(download, given.fetch, progress.counter(f"downloading {download.name}", "byte"))
                progress.stage(f"unpacking {download.name}")
                lists = unpack(archive, given.fetch / download.name.partition(".")[0])
                sounds = str(lists)
            count = progress.counter("writing", "clip", "reading the lists and looking for the sounds")
            info = build_dataset(
                given.name,
                spec,
                lists,
                storage_path(sounds, "--audio"),
                out,
                options,
                count,
                log,
            )
    except (DataError, FetchError) as error:
        raise ConfigError(*error.args) from None
    except KeyboardInterrupt:
        report("interrupted; the same command continues")
        return 130
    console.say(f"{summary(info)}; the whole list is in {(out / MANIFEST).url}")
    return 0


def _parser(names: str) -> argparse.ArgumentParser:
    parser = make_parser("prepare", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("name", metavar="NAME", help=f"one of {names}")
    parser.add_argument("--lists", type=path, help="folder of the official lists")
    parser.add_argument("--audio", help="folder or URL of the sounds, searched at any depth")
    parser.add_argument("--fetch", type=path, help="folder to download the published archive to, instead of those two")
    parser.add_argument("--out", required=True, help="folder or URL to write to")
    parser.add_argument("--config", help="a Python file, which is run, or a run's config.json, for its front end")
    parser.add_argument(
        "--coding", choices=("pcm", "flac"), default="pcm", help="flac is half as large and slower to read"
    )
    parser.add_argument("--shard-clips", type=positive_int, default=2048, help="clips per shard (2048)")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count() or 1, help="processes (one per core)")
    return parser


def _front_end(given: argparse.Namespace, rest: list[str], spec: DatasetSpec) -> AudioConfig:
    """The front end to prepare for; checks which options go together.

    Raises:
      ConfigError: options that contradict each other, or one that is missing.
    """
    overrides = settings.read_overrides(rest, USAGE)
    if given.fetch and not spec.downloads:
        raise ConfigError(f"--fetch={given.fetch}: {spec.title} has no single archive; give --lists and --audio")
    if given.fetch and (given.lists or given.audio):
        raise ConfigError(f"--fetch={given.fetch}: replaces --lists and --audio; give it without them")
    if not given.fetch and not (given.lists and given.audio):
        missing = "--audio" if given.lists else "--lists"
        raise ConfigError(f"{missing} is missing; --lists is a folder with {spec.lists}; --audio one with the sounds")
    if overrides and not given.config:
        raise ConfigError(f"--config.{next(iter(overrides))}: needs --config=configs/NAME.py")
    return (
        settings.load_config(given.config, overrides).audio
        if given.config
        else AudioConfig(sample_rate=spec.sample_rate)
    )
