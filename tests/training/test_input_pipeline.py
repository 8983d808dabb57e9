"""What the data must be, and what is said of them, before a run starts."""

import pytest

from datar_jax.config import Config, ConfigError, DataConfig
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.training.input_pipeline import with_classes


def test_one_class_needs_no_recognizer() -> None:
    dataset = Dataset((Clip("a", "dog/a.wav", (0,)), Clip("b", "dog/b.wav", (0,))), ("dog",), source="sounds")
    with pytest.raises(ConfigError, match=r"sounds: 'dog' is the only class.*two or more"):
        with_classes(Config(data=DataConfig(root="sounds")), dataset)
    several = Config(data=DataConfig(root="sounds", labels="multi"))
    assert with_classes(several, dataset).model.num_classes == 1, "there or not there"
