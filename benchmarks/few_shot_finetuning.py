"""Few-shot fine-tuning on ESC-10: from nine classes to all ten, with four clips per class.

    python benchmarks/few_shot_finetuning.py --root=ESC10 --workdir=runs/few_clips [--new=sneezing] [--clips=4]
        [--only=1,2,3,4,5]

For each official fold as test: a model is trained on nine classes of the other four folds; then four clips a class of
those folds, all ten classes, are drawn once (seed = fold), and the same forty clips train a fine-tuned model, a linear
probe and a model from scratch. All are scored on the fold's 80 clips, the last epoch counts, nothing is chosen by them.
The forty clips hold 36 that the nine-class model was trained on, and the four of the new class. A second call continues
where the first was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datar_jax.checkpoints.pretrained_config import pretrained_sections
from datar_jax.config.loader import load_config
from datar_jax.training.trainer import train_and_evaluate

Clips = list[tuple[str, str, int]]  # path, class, fold

WAYS = {
    "fine-tuned": ("finetune", {"train.epochs": "100"}),
    "linear probe": (
        "finetune",
        {"train.epochs": "100", "optim.freeze": "backbone", "optim.learning_rate": "1e-2"},
    ),
    "from scratch": ("esc10", {"data.subset": "", "train.epochs": "400"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--new", default="sneezing", help="the class that the first model is not trained on")
    parser.add_argument("--clips", type=int, default=4, help="of each class")
    parser.add_argument("--only", default="1,2,3,4,5", help="folds to test on")
    given = parser.parse_args()
    root, workdir = given.root.absolute(), given.workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)

    clips = read_clips(root)
    kind = {
        "data.kind": "csv",
        "data.validation_fraction": "0",
    }  # all few are learned from
    common = {**kind, "data.root": str(root), "data.cache": str(workdir / "cache")}
    nine = {**common, "data.subset": "", "data.manifest": str(workdir / "nine.csv"), "data.fold": "0"}
    write(workdir / "nine.csv", "fold", [clip for clip in clips if clip[1] != given.new])
    train_and_evaluate(load_config(ROOT / "configs" / "esc10.py", {**nine, "train.epochs": "60"}), workdir / "nine")

    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for fold in map(int, given.only.split(",")):
        manifest = workdir / f"few_{fold}.csv"
        write(manifest, "split", few(clips, fold, given.clips))
        for way, (name, fields) in WAYS.items():
            fields = {**common, "data.manifest": str(manifest), **fields}
            if name == "finetune":
                fields["init.from"] = str(workdir / "nine" / f"fold_{fold}")
            folder = workdir / way.replace(" ", "_") / f"fold_{fold}"
            config = load_config(ROOT / "configs" / f"{name}.py", fields, pretrained_sections)
            scores[way][fold] = train_and_evaluate(config, folder)["top1"]
    table = table_of(scores)
    (workdir / "table.md").write_text(table)
    (workdir / "scores.json").write_text(json.dumps(scores))
    print(table)


def read_clips(root: Path) -> Clips:
    """All clips of the folder's one table."""
    with next((root / "meta").glob("*.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("esc10", "True") == "True"]
    names = {path.stem: path.name for path in (root / "audio").iterdir()}
    return [(f"audio/{names[Path(row['filename']).stem]}", row["category"], int(row["fold"])) for row in rows]


def few(clips: Clips, fold: int, count: int) -> list[tuple[str, str, str]]:
    """`count` clips of each class from the other folds for training, and the whole fold for the test."""
    draw = random.Random(fold)
    train: list[tuple[str, str, str]] = []
    for label in sorted({label for _, label, _ in clips}):
        others = sorted(path for path, each, at in clips if each == label and at != fold)
        train += [(path, label, "train") for path in draw.sample(others, count)]
    return train + [(path, label, "test") for path, label, at in clips if at == fold]


def write(path: Path, split: str, clips: list) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", split), *clips])


def table_of(scores: dict[str, dict[int, float]]) -> str:
    folds = sorted(next(iter(scores.values())))
    lines = [f"| | top-1, mean ± deviation over folds | folds {', '.join(map(str, folds))} |", "|---|---|---|"]
    for way, of_fold in scores.items():
        values = 100 * np.array([of_fold[fold] for fold in folds])
        spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        lines.append(f"| {way} | {values.mean():.1f}{spread} | {' · '.join(f'{v:.1f}' for v in values)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
