"""Numbers and their nouns, as a sentence has them."""


def count(number: int, one: str, many: str = "") -> str:
    """`1 sound`, `3,000 sounds`; `many` stands for more than one where that is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
