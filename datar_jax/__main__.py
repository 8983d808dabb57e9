"""What is no training: `prepare` makes shards of a published data set, `plan` compiles for a TPU slice not there."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from datar_jax import settings
from datar_jax.chips import ENVIRONMENT, LIBTPU, topology
from datar_jax.config import AudioConfig, ConfigError

PREPARE = (
    "python -m datar_jax prepare NAME (--lists=DIR --audio=DIR | --fetch=DIR) --out=DIR [--config=configs/NAME.py] "
    "[--config.audio.field=value ...] [--coding=pcm|flac] [--shard-clips=2048] [--workers=N]"
)
PLAN = (
    "python -m datar_jax plan --config=configs/NAME.py [--config.path.to.field=value ...] --topology=v5e:16x16 "
    "[--batch=16] [--seconds=10] [--classes=527] [--largest] [--scaling=1x1,2x2,4x4,8x8,16x16] [--json]"
)


def main(arguments: list[str]) -> int:
    """Runs a sub-command; the exit status is 0, 1 where the program does not fit, 2 for what the caller has to mend."""
    try:
        commands = {"prepare": prepare, "plan": plan}
        if arguments[:1] in (["-h"], ["--help"]):
            print(f"usage: {PREPARE}\n       {PLAN}")
            return 0
        if arguments[:1] == [] or arguments[0] not in commands:
            raise ConfigError(f"{' '.join(arguments[:1]) or 'nothing'}: not a command; usage: {PREPARE}, or {PLAN}")
        return commands[arguments[0]](arguments[1:])
    except ConfigError as error:
        print(f"datar_jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("datar_jax: stopped; the same command goes on", file=sys.stderr)
        return 130


def prepare(arguments: list[str]) -> int:
    """Writes the shards of a data set; started again, goes on where it was.

    Raises:
      ConfigError: an option that cannot be, lists that cannot be used, or sounds that are not there.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from datar_jax.cook import Recipe
    from datar_jax.corpora import CORPORA
    from datar_jax.fetch import FetchError, fetch
    from datar_jax.places import place
    from datar_jax.prepare import prepare as write
    from datar_jax.shards import MANIFEST, tell
    from datar_jax.store import DataError
    from datar_jax.unpack import unpack

    names = ", ".join(CORPORA)
    parser = argparse.ArgumentParser(prog="python -m datar_jax prepare", usage=PREPARE, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help=f"one of {names}")
    parser.add_argument("--lists", type=_folder, help="folder of the official lists")
    parser.add_argument("--audio", help="folder or URL of the sounds, at any depth")
    parser.add_argument("--fetch", type=_folder, help="folder to get the published archive into, in place of those two")
    parser.add_argument("--out", required=True, help="folder or URL to write to")
    parser.add_argument("--config", help="a Python file with get_config(), for its front end (rate, statistics)")
    parser.add_argument(
        "--coding", choices=("pcm", "flac"), default="pcm", help="flac is half as large, slower to read"
    )
    parser.add_argument("--shard-clips", type=_whole, default=2048, help="clips in a shard (2048)")
    parser.add_argument("--workers", type=_whole, default=os.cpu_count() or 1, help="processes (one a core)")
    known, rest = parser.parse_known_args(arguments)
    if known.name not in CORPORA:
        raise ConfigError(f"{known.name}: not a data set that is known; give one of {names}")
    corpus = CORPORA[known.name]
    overrides = settings.read_overrides(rest, PREPARE)
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
        settings.load(known.config, overrides).audio if known.config else AudioConfig(sample_rate=corpus.sample_rate)
    )
    recipe = Recipe(audio, known.coding, known.shard_clips, known.workers)

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
    console.print(f"{tell(card)}; all of it in {(out / MANIFEST).url}", markup=False, soft_wrap=True)
    return 0


def plan(arguments: list[str]) -> int:
    """Compiles and prints one page, or with `--scaling` one page and a table.

    Raises:
      ConfigError: an option, a setting or a slice that cannot be, or libtpu is not there.
    """
    parser = argparse.ArgumentParser(prog="python -m datar_jax plan", usage=PLAN, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="a Python file with get_config(); see configs/")
    parser.add_argument("--topology", required=True, help="generation and shape of a slice, such as v5e:16x16")
    parser.add_argument("--batch", type=_whole, default=16, help="clips on each chip (16)")
    parser.add_argument("--seconds", type=_length, default=10.0, help="of a clip (10)")
    parser.add_argument("--classes", type=_whole, default=527, help="width of the head (527, AudioSet's)")
    parser.add_argument("--largest", action="store_true", help="a second compile for the largest batch that fits")
    parser.add_argument("--scaling", default="", help="slices of a weak-scaling table; one more compile for each")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a page")
    known, rest = parser.parse_known_args(arguments)
    config = settings.load(known.config, settings.read_overrides(rest, PLAN))
    place = topology(known.topology)
    others = [topology(each, place.chip.name) for each in known.scaling.split(",") if each]
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"libtpu is not installed, and it is what compiles for a TPU: pip install {LIBTPU}")

    os.environ |= ENVIRONMENT
    from datar_jax.plan import make_plan, page, scaling

    plans = {}
    for each in dict.fromkeys([place, *others]):
        print(f"compiling for {each.name}: minutes", file=sys.stderr, flush=True)
        largest = known.largest and each == place
        plans[each] = make_plan(config, each, known.batch, known.seconds, known.classes, largest)
    table = [plans[each] for each in others]
    if known.json:
        tree = {**msgspec.to_builtins(plans[place]), "scaling": [msgspec.to_builtins(row) for row in table]}
        print(msgspec.json.encode(tree).decode())
    else:
        print(page(plans[place]))
        if table:
            print(f"\n{scaling(table)}")
    return 0 if plans[place].fits else 1


def _folder(text: str) -> Path:
    return Path(text).expanduser()  # which a shell does not after an equals sign


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return int(text)


def _length(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < 1e6:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give seconds, more than 0")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
