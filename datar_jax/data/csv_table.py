"""Reads text lists and CSV tables; errors name the file, row and column."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from datar_jax.config import ConfigError
from datar_jax.foreign_files import UnsafeName, open_regular, path_below

_CLOCK = re.compile(r"(\d{1,4}):([0-5]\d):([0-5]\d(?:\.\d*)?)", re.ASCII)


def lines(path: Path) -> Iterator[str]:
    r"""The lines of a text file in UTF-8, with or without a mark, each with the `\n` that ends it; any line ends.

    Raises:
      ConfigError: the file cannot be read or is no such text.
    """
    row = 0
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
            for line in file:
                row += 1
                yield line
    except UnicodeDecodeError:
        raise ConfigError(f"{path}, row {row + 1} or below: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def listed_file(where: str, folder: Path, name: str) -> Path:
    """The path of a file that a list names, as its folder spells it: accents may be stored composed or decomposed.

    Raises:
      ConfigError: the name leaves the folder; `where` is named.
    """
    try:
        path = path_below(folder, name)
        if name.isascii() or path.exists():
            return path
        other = path_below(folder, unicodedata.normalize("NFD", name))
        return other if other.exists() else path
    except UnsafeName as error:
        raise ConfigError(f"{where}: {error}; give a path below {folder}") from None


class Table:
    """A CSV file read row by row with named columns; keeps track of the current row."""

    def __init__(
        self,
        path: Path,
        needed: Sequence[str],
        optional: Sequence[str] | None = (),
        header: Sequence[str] = (),
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Reads the header: it must have `needed` columns and may have `optional` ones (None: any).

        Args:
          path: the file.
          needed: names of columns.
          optional: names of columns.
          header: the names where the file need not have any. Rows at its top that repeat them or begin with "# " are
            passed over.
          renamed: today's name of each column that earlier versions called otherwise.

        Raises:
          ConfigError: the file cannot be read, or has other columns.
        """
        self.path, self.row = path, 0
        self._values: dict[str, str] = {}
        self._reader = csv.reader(lines(path), skipinitialspace=True)
        self._titled = not header
        names = (name.strip() for name in (header or next(self._cells(), [])))
        self._header = [renamed.get(name, name) for name in names]
        self.columns = frozenset(self._header)
        for name in needed:
            if name not in self.columns:
                raise ConfigError(f"{path}, row 1: no column {name!r}; {self._header_hint()}")
        for name in self._header:
            if self._header.count(name) > 1 or (optional is not None and name not in (*needed, *optional)):
                known = "" if optional is None else f"; known: {', '.join((*needed, *optional))}"
                raise ConfigError(f"{path}, row 1: column {name!r} is unknown or there twice{known}")

    def _header_hint(self) -> str:
        """What the header has instead, and how to mend separators that are no commas."""
        for character, name in (("\t", "tabs"), (";", "semicolons"), ("|", "bars")):
            if len(self._header) == 1 and character in self._header[0]:
                return f"its columns are divided by {name}: save it with commas"
        return f"the header has {', '.join(self._header)}"

    def rows(self) -> Iterator[dict[str, str]]:
        """Yields the rows below the header, without blank ones."""
        head = not self._titled
        for cells in self._cells():
            self.row = self._reader.line_num
            if not "".join(cells).strip():
                continue
            if head and (cells[0].startswith("# ") or [cell.strip() for cell in cells] == self._header):
                continue
            head = False
            if len(cells) != len(self._header):
                raise ConfigError(
                    f"{self.path}, row {self.row}: {len(cells)} cells, but there are {len(self._header)} columns "
                    f"({', '.join(self._header)}); quote cells that hold a comma"
                )
            self._values = dict(zip(self._header, map(str.strip, cells)))
            yield self._values

    def _cells(self) -> Iterator[list[str]]:
        """Yields raw rows; an unclosed quote turns the rest of the file into one oversized cell, which is an error."""
        try:
            yield from self._reader
        except csv.Error as error:
            raise ConfigError(f"{self.path}, row {self.row + 1} or below: {error}; is a quote left open?") from None

    def text(self, column: str) -> str:
        """The text in a column of this row; must not be empty."""
        if not self._values[column]:
            self.fail(column, "must not be empty")
        return self._values[column]

    def real(self, column: str) -> float:
        """The number in a column of this row, finite; 0 if the column or value is missing."""
        text = self._values.get(column, "")
        try:
            value = float(text or 0)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.fail(column, "give a number")
        return value

    def whole(self, column: str, least: int) -> int:
        """The whole number, `least` or more, in a column of this row."""
        text = self._values[column]
        if not text.isdecimal() or len(text) > 9 or int(text) < least:
            self.fail(column, f"give a whole number, {least} or more")
        return int(text)

    def checksum(self, column: str) -> int:
        """The CRC-32 in a column of this row, eight hexadecimal digits."""
        text = self._values[column]
        if not re.fullmatch("[0-9a-f]{8}", text):
            self.fail(column, "give eight hexadecimal digits")
        return int(text, 16)

    def clock(self, column: str) -> float:
        """The time in a column of this row, `HH:MM:SS` with or without a fraction, in seconds."""
        found = _CLOCK.fullmatch(self._values[column])
        if not found:
            self.fail(column, "give a time as HH:MM:SS.ss")
        hours, minutes, seconds = found.groups()
        return round(int(hours) * 3600 + int(minutes) * 60 + float(seconds), 6)

    def file(self, column: str, folder: Path, name: str) -> Path:
        """As `listed_file`, for a name from a column of this row."""
        return listed_file(f"{self.path}, row {self.row}, column {column}", folder, name)

    def fail(self, column: str, remedy: str) -> NoReturn:
        """Raises a `ConfigError` that names the file, this row, the column and its value."""
        raise ConfigError(f"{self.path}, row {self.row}, column {column}={self._values[column]!r}: {remedy}")
