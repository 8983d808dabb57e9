"""Ablation on ESC-10: input adaptors, and deformable against window attention.

    python benchmarks/ablation.py --root=ESC10 --workdir=runs/ablation [--epochs=N] [--only=NAME,...]

Every row is a whole cross-validation with configs/esc10.py, same seed, same folds; only the named setting differs. A
second call continues where the first was stopped. Prints a table in Markdown and writes it to WORKDIR/table.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datar_jax.config.loader import load_config
from datar_jax.training.trainer import train_and_evaluate

VARIANTS = {
    "none": {"model.adaptor": "none"},
    "signal": {"model.adaptor": "signal"},
    "conv": {"model.adaptor": "conv"},
    "both": {"model.adaptor": "both"},
    "windows only": {"model.adaptor": "none", "model.spec": "L,S,LS,S"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--epochs", default="20")
    parser.add_argument("--only", default=",".join(VARIANTS))
    given = parser.parse_args()

    for name in given.only.split(","):
        fields = {"data.root": given.root, "data.fold": "0", "train.epochs": given.epochs, **VARIANTS[name]}
        fields["data.cache"] = str(given.workdir / "cache")
        train_and_evaluate(load_config(ROOT / "configs" / "esc10.py", fields), given.workdir / name.replace(" ", "_"))
    table = table_of(given.workdir)
    (given.workdir / "table.md").write_text(table)
    print(table)


def table_of(workdir: Path) -> str:
    """The rows whose runs are finished."""
    lines = [
        "| adaptor | top-1, mean ± deviation over folds | loss | folds 1 to 5 | parameters | M MACs |",
        "|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        path = workdir / name.replace(" ", "_") / "result.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        folds = " · ".join(f"{100 * each['top1']:.1f}" for each in result["folds"])
        lines.append(
            f"| {name} | {100 * result['top1']:.1f} ± {100 * result['top1_std']:.1f} | {result['loss']:.3f} | {folds} "
            f"| {result['parameters']:,} | {result['macs_per_clip'] / 1e6:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
