"""The console of every command: shows texts of others as they are, and never obeys them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from datar_jax.escaping import printable


class Console(rich.console.Console):
    """A rich console without markup on which no text moves the cursor, sets colors or reverses the reading order."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def say(self, line: str) -> None:
        """Prints one line, however long; a line break in it is escaped too."""
        self.print(printable(line), soft_wrap=True)

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        """Renders with the control characters of texts escaped."""
        for segment in super().render(*args, **kwargs):
            yield segment._replace(text="\n".join(map(printable, segment.text.split("\n"))))
