"""Numbers agree with their nouns."""

from datar_jax.wording import count


def test_one_is_singular_and_all_others_are_not() -> None:
    assert [count(n, "sound") for n in (0, 1, 2, 1000)] == ["0 sounds", "1 sound", "2 sounds", "1,000 sounds"]
    assert [count(n, "class is", "classes are") for n in (1, 2)] == ["1 class is", "2 classes are"]
