"""Fine-tuning: initial weights of a run, and the provenance that its model records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from datar_jax.checkpoints.model_info import MODEL_FILE, ModelError, ModelInfo, read_model_info
from datar_jax.checkpoints.pretrained import PretrainedModel, load_pretrained
from datar_jax.checkpoints.provenance import DataProvenance, Provenance, RunProvenance
from datar_jax.checkpoints.transfer import Transfer, transfer
from datar_jax.config import Config, ConfigError
from datar_jax.data.dataset import Dataset
from datar_jax.data.splits import Splits
from datar_jax.training.train_step import TrainState
from datar_jax.training.workdir import has_checkpoint
from datar_jax.version import __version__


def read_init_source(config: Config) -> PretrainedModel | None:
    """Loads the model of `init.from`; None if it is not set.

    Raises:
      ConfigError: it cannot be read, or has no weights.
    """
    if not config.init.source:
        return None
    try:
        source = load_pretrained(config.init.source)
    except ModelError as error:
        raise ConfigError(f"init.from={config.init.source!r}: {error}") from None
    if source.params is None:
        raise ConfigError(f"init.from={config.init.source!r}: a program, without weights to train; give another form")
    return source


def started_run(folder: Path) -> ModelInfo | None:
    """Model info of a run that has a checkpoint; None without one. Such a run no longer needs `init.from`."""
    if not has_checkpoint(folder):
        return None
    try:
        return read_model_info(folder / MODEL_FILE)
    except ModelError:
        return None


def initialize_from(
    source: Callable[[], PretrainedModel | None], description: ModelInfo, say: Callable[[str], None], state: TrainState
) -> TrainState:
    """The initial state of fine-tuning; logs what becomes of every parameter.

    Args:
      source: reads the other model.
      description: of the model that is trained.
      say: takes a line for the person who watches.
      state: a fresh one.

    Raises:
      ConfigError: as `transfer`.
    """
    other = source()
    assert other
    given = transfer(other.params, other.description, state.params, description)
    say(f"starts from {other.source}")
    for line in (*other.notes, *given.account(description.labels)):
        say(line)
    return started(state, other.params, given)


def provenance(
    config: Config,
    dataset: Dataset,
    each: Splits,
    fold: int,
    steps: int,
    pretraining: Provenance | None,
    checksums: bytes = b"",
) -> Provenance:
    """Provenance of a model: program, data, run and pretraining; `checksums` as `pack_checksums` returns them."""
    card = dataset.card
    return Provenance(
        program=f"datar-jax {__version__}, jax {jax.__version__}",
        data=DataProvenance(
            kind=config.data.kind,
            name=card.title if card else Path(config.data.root).name,
            clips_sha256=card.clips_sha256 if card else "",
            fold=fold if dataset.folds else None,
            clips_crc32=checksums,
            clips={split: len(getattr(each, split)) for split in ("train", "validation", "test")},
        ),
        run=RunProvenance(seed=config.train.seed, epochs=config.train.epochs, steps=steps),
        pretraining=pretraining,
    )


def source_provenance(source: PretrainedModel | None) -> Provenance | None:
    """Provenance of the model that a run was initialized from."""
    return msgspec.structs.replace(source.description.provenance, source=source.source) if source else None


def started(state: TrainState, params: Any, given: Transfer) -> TrainState:
    """A new state with the transferred weights and, if used, their average."""
    old = tree.flatten_dict(params, sep="/")

    def put(name: str, leaf: jax.Array) -> jax.Array:
        if name in given.values:
            value = given.values[name].astype(leaf.dtype)
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda part: value[part])
        known = np.flatnonzero(given.classes >= 0)
        if name.startswith("head/") and name in old and known.size:
            columns = np.asarray(old[name])[..., given.classes[known]].astype(leaf.dtype)
            return jax.jit(lambda x: x.at[..., known].set(columns), out_shardings=leaf.sharding)(leaf)
        return leaf

    moved = {name: put(name, leaf) for name, leaf in tree.flatten_dict(state.params, sep="/").items()}
    new = tree.unflatten_dict(moved, sep="/")
    ema = jax.tree.map(jnp.copy, new) if state.ema else state.ema
    return TrainState(state.step, new, ema, state.opt_state, state.skipped, state.statistics)
