"""`prepare`: from the lists and sounds of a published data set, as people have them, to shards that training reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from datar_jax.checkpoints.pretrained_config import base_sections
from datar_jax.cli.options import folder, make_parser, whole
from datar_jax.config import AudioConfig, ConfigError
from datar_jax.config import loader as settings

USAGE = (
    "python -m datar_jax prepare NAME (--lists=DIR --audio=DIR | --fetch=DIR) --out=DIR [--config=configs/NAME.py] "
    "[--config.audio.field=value ...] [--coding=pcm|flac] [--shard-clips=2048] [--workers=N]"
)
SUMMARY = "Writes the shards of a published data set; the same command goes on where it was stopped (docs/data.md)."
EXAMPLE = "python -m datar_jax prepare esc50 --fetch=downloads --out=prepared/esc50"


def main(arguments: list[str]) -> int:
    """Writes the shards of a data set; started again, goes on where it was.

    Raises:
      ConfigError: an option that cannot be, lists that cannot be used, or sounds that are not there.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from datar_jax.data.datasets import CORPORA
    from datar_jax.data.prepare.build import prepare as write
    from datar_jax.data.prepare.download import FetchError, fetch
    from datar_jax.data.prepare.encode import EncodeOptions
    from datar_jax.data.prepare.extract import unpack
    from datar_jax.data.prepared import MANIFEST, tell
    from datar_jax.data.sources.base import DataError
    from datar_jax.filesystem import place

    names = ", ".join(CORPORA)
    parser = make_parser("prepare", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("name", metavar="NAME", help=f"one of {names}")
    parser.add_argument("--lists", type=folder, help="folder of the official lists")
    parser.add_argument("--audio", help="folder or URL of the sounds, at any depth")
    parser.add_argument("--fetch", type=folder, help="folder to get the published archive into, in place of those two")
    parser.add_argument("--out", required=True, help="folder or URL to write to")
    parser.add_argument("--config", help="a Python file with get_config(), for its front end (rate, statistics)")
    parser.add_argument(
        "--coding", choices=("pcm", "flac"), default="pcm", help="flac is half as large, slower to read"
    )
    parser.add_argument("--shard-clips", type=whole, default=2048, help="clips in a shard (2048)")
    parser.add_argument("--workers", type=whole, default=os.cpu_count() or 1, help="processes (one a core)")
    known, rest = parser.parse_known_args(arguments)
    if known.name not in CORPORA:
        raise ConfigError(f"{known.name}: not a data set that is known; give one of {names}")
    corpus = CORPORA[known.name]
    overrides = settings.read_overrides(rest, USAGE)
    if known.fetch and not corpus.downloads:
        raise ConfigError(f"--fetch={known.fetch}: {corpus.title} lies in no one place; give --lists and --audio")
    if known.fetch and (known.lists or known.audio):
        raise ConfigError(f"--fetch={known.fetch}: in place of --lists and --audio; give it without them")
    if not known.fetch and not (known.lists and known.audio):
        missing = "--audio" if known.lists else "--lists"
        raise ConfigError(
            f"{missing} is not given; --lists is a folder with {corpus.lists}; --audio one with the sounds"
        )
    if overrides and not known.config:
        raise ConfigError(f"--config.{next(iter(overrides))}: needs --config=configs/NAME.py")
    audio = (
        settings.load_config(known.config, overrides, base_sections).audio
        if known.config
        else AudioConfig(sample_rate=corpus.sample_rate)
    )
    recipe = EncodeOptions(audio, known.coding, known.shard_clips, known.workers)

    def counted(bar: Progress, what: str) -> Callable[[int, int], None]:
        task = bar.add_task(what, total=None)
        return lambda done, total: bar.update(task, completed=done, total=total or None)

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    lists, sounds, out = known.lists, known.audio, place(known.out, "--out")
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            for download in corpus.downloads if known.fetch else ():
                archive = fetch(download, known.fetch, counted(bar, f"bytes of {download.name}"))
                lists = unpack(archive, known.fetch / download.name.partition(".")[0])
                sounds = str(lists)
            card = write(
                known.name,
                corpus,
                lists,
                place(sounds, "--audio"),
                out,
                recipe,
                counted(bar, "clips"),
                lambda line: console.print(line, markup=False, soft_wrap=True),
            )
    except (DataError, FetchError) as error:
        raise ConfigError(str(error)) from None
    except KeyboardInterrupt:
        print("datar_jax: stopped; the same command goes on", file=sys.stderr)
        return 130
    console.print(f"{tell(card)}; all of it in {(out / MANIFEST).url}", markup=False, soft_wrap=True)
    return 0
