r"""Texts of others in our outputs: names of classes, files and tensors, which may be made to do harm.

One function per medium. A terminal gets one printable line; a CSV cell is one line that no spreadsheet takes for a
formula; Markdown and YAML show a text and never interpret it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reverse the order in which a line is read
# Control characters, line separators and bidi marks; what is no UTF-8 stays, byte for byte, and so do joiners.
_UNSAFE = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\\]")
_ESCAPED = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4})")
_SIGNS = r"=+@\-\uff1d\uff0b\uff0d\uff20"  # begin a formula; with their full-width forms
_FORMULA = re.compile(rf"[^\w!-~{_SIGNS}]*[{_SIGNS}]|[\t\r\n']")  # whatever is not seen before it
_INNER_FORMULA = re.compile(rf"(?<=;)(\s*)([{_SIGNS}])")  # where a spreadsheet divides cells by semicolons
# Letters and digits with harmless punctuation between them: no mark, no link, no address and no file name.
_PLAIN_WORDS = re.compile(r"(?!.*(?:\.[^\W\d_]|//))[^\W\d_](?:[^\W_]|[ ,.;:'()/+#%-])*")


def printable(name: str, longest: int | None = None) -> str:
    """A text as one printable line: control characters, bidi marks and invalid UTF-8 are escaped.

    Args:
      name: the text.
      longest: characters of the line, if it may be cut off.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:longest])[:longest]


def csv_cell(text: str) -> str:
    r"""A text as a CSV cell of one line, which `from_csv_cell` reads back.

    Control characters and bidi marks are written as `\n`, `\x1b` or `\u202e`, and a backslash twice. A cell that a
    spreadsheet might run, or that begins with a quote already, begins with a quote (OWASP, "CSV Injection"); after a
    semicolon the sign itself is escaped (`\u003d`).
    """
    safe = _UNSAFE.sub(lambda c: c[0].encode("unicode_escape").decode(), text)
    safe = _INNER_FORMULA.sub(lambda c: f"{c[1]}\\u{ord(c[2]):04x}", safe)
    return f"'{safe}" if _FORMULA.match(text) else safe


def from_csv_cell(cell: str) -> str:
    """The text that `csv_cell` made a cell of."""
    return _ESCAPED.sub(lambda c: c[0].encode().decode("unicode_escape"), cell.removeprefix("'"))


class CsvWriter:
    """Writes the rows of a CSV file; texts are escaped by `csv_cell`, numbers are written as they are.

    Args:
      file: open for text with `newline=""` and, for file names that are no UTF-8, `errors="surrogateescape"`.
      header: names of the columns.
    """

    def __init__(self, file: TextIO, header: Sequence[str]) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(header)

    def row(self, values: Iterable[Any]) -> None:
        """Writes one row; None is an empty cell."""
        self._rows.writerow(csv_cell(value) if isinstance(value, str) else value for value in values)


def read_csv(file: Iterable[str]) -> Iterator[dict[str, str]]:
    """The rows of a file of `CsvWriter`, by column, with the texts as they were."""
    for row in csv.DictReader(file):
        yield {name: from_csv_cell(cell) for name, cell in row.items()}


def markdown(text: str) -> str:
    """A text within Markdown, in any position: plain words as they are, all else as a code span on one line."""
    if _PLAIN_WORDS.fullmatch(text) and "www." not in text.lower():
        return text
    line = printable(text).strip().replace("|", "\\x7c")  # a bar ends a cell of a table, also within a code span
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def yaml_text(text: str) -> str:
    """A text as a quoted YAML scalar, which no reader takes for a number, a truth value or structure."""
    return json.dumps(printable(text), ensure_ascii=False)  # YAML has no pairs of surrogates
