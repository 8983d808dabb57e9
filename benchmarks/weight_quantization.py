"""Accuracy of stored weights in float32, bfloat16 and int8: trained models on their test clips.

    python benchmarks/weight_quantization.py --runs=runs/esc10 --config=configs/esc10.py --config.data.root=ESC10
        [--config.data.field=value ...] [--cache=DIR]

`--runs` is a work directory: each fold_K in it is scored on the clips of fold K; one without folds on the test clips of
the configuration. Every model is exported in each form to a temporary folder and read from there; computing is float32
always. Runs of versions without model.json are reported and skipped. One label a clip. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console

from benchmarks._settings import header, row
from datar_jax.checkpoints.model_info import ModelError
from datar_jax.checkpoints.pretrained import PretrainedModel, load_pretrained
from datar_jax.checkpoints.quantization import WeightDtype
from datar_jax.config import Config, ConfigError
from datar_jax.config import loader as settings
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.base import usable
from datar_jax.data.splits import split
from datar_jax.export.exporter import export
from datar_jax.models.spec import ModelSpec
from datar_jax.training.eval_loop import score_clips
from datar_jax.training.evaluate import remap_labels
from datar_jax.training.input_pipeline import open_source
from datar_jax.training.sharding import make_mesh

FORMS: tuple[WeightDtype, ...] = ("float32", "bfloat16", "int8")
USAGE = (
    "python benchmarks/weight_quantization.py --runs=DIR --config=configs/NAME.py "
    "[--config.data.field=value ...] [--cache=DIR]"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=USAGE, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, required=True, help="a work directory, of folds or of one run")
    parser.add_argument("--config", required=True, help="a Python file with get_config(); its data count")
    parser.add_argument("--cache", type=Path, help="where decoded sounds are kept; nowhere otherwise")
    given, rest = parser.parse_known_args()
    scores: dict[WeightDtype, list[np.ndarray]] = {form: [] for form in FORMS}
    sizes: dict[WeightDtype, list[int]] = {form: [] for form in FORMS}
    truths = []
    with tempfile.TemporaryDirectory() as temporary:
        try:
            config = settings.load_config(given.config, settings.read_overrides(rest, USAGE))
            folds = sorted(given.runs.glob("fold_*"), key=lambda path: int(path.name.removeprefix("fold_")))
            for run in folds or [given.runs]:
                exports = Path(temporary) / run.name
                try:
                    files = {form: export(run, exports / form, "safetensors", form) for form in FORMS}
                except ModelError as error:
                    print(f"left out: {error}", file=sys.stderr)
                    continue
                if folds:
                    fold = int(run.name.removeprefix("fold_"))
                    config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, fold=fold))
                for form, file in files.items():
                    score_NxS, truth_N = score(
                        load_pretrained(file.parent), config, given.cache or Path(temporary) / "cache"
                    )
                    scores[form].append(score_NxS)
                    sizes[form].append(file.stat().st_size)
                truths.append(truth_N)
        except (ConfigError, ModelError) as error:
            parser.exit(2, f"error: {error}\n")
    if not truths:
        parser.exit(2, f"error: {given.runs}: no model that can be used\n")
    print(f"{len(truths)} models, {sum(map(len, truths))} test clips.\n")
    print(
        header(
            [
                "weights",
                "MB",
                "top-1",
                "of each",
                "answers changed",
                "to right",
                "to wrong",
                "largest change of a score",
            ]
        )
    )
    for form in FORMS:
        print(row(form, f"{np.mean(sizes[form]) / 1e6:.2f}", *cells(scores[form], scores["float32"], truths)))


def score(saved: PretrainedModel, config: Config, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, S) and true classes (N,) of the test clips, as `datar_jax evaluate` does."""
    model = saved.description
    assert model.normalization is not None
    if model.config.data.labels != "single":
        raise ConfigError(f"{saved.source}: has several labels a clip; give models of one label")
    data = msgspec.structs.replace(config.data, cache=str(cache))
    config = msgspec.structs.replace(config, audio=model.audio, model=model.config.model, data=data)
    dataset = read_dataset(config.data)
    chosen = split(dataset, config.data, config.data.fold).test
    dataset = remap_labels(model, dataset)
    store = open_source(config, dataset, cache, Console(stderr=True))
    indices, _ = usable(store, chosen)
    spec = ModelSpec(config, len(model.labels), model.frames, 1, tuple(model.heads.values()))
    statistics = np.array(model.normalization, np.float32)
    score_NxS, target_NxS = score_clips(spec, make_mesh(config.mesh), store, dataset, saved.params, statistics, indices)
    return score_NxS, target_NxS.argmax(1)


def cells(scores: list[np.ndarray], exact: list[np.ndarray], truths: list[np.ndarray]) -> list[str]:
    """What a row says of one form."""
    right = [score.argmax(1) == truth for score, truth in zip(scores, truths)]
    was = [score.argmax(1) == truth for score, truth in zip(exact, truths)]
    changed = sum(int((one.argmax(1) != other.argmax(1)).sum()) for one, other in zip(scores, exact))
    top1 = [100 * each.mean() for each in right]
    return [
        f"{np.mean(top1):.2f}",
        " · ".join(f"{each:.1f}" for each in top1),
        str(changed),
        str(sum(int((now & ~before).sum()) for now, before in zip(right, was))),
        str(sum(int((before & ~now).sum()) for now, before in zip(right, was))),
        f"{max(np.abs(one - other).max() for one, other in zip(scores, exact)):.4f}",
    ]


if __name__ == "__main__":
    main()
