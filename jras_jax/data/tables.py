"""The text files of the challenges: Info.cfg and tables of patients, however a program has saved them."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jras_jax.errors import ScanError

_BYTE_ORDER_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
_DELIMITERS = (",", ";", "\t", "|")


_TITLES = 10  # rows that may come before the names of the columns


class Row(NamedTuple):
    """A row of a table: its line in the file, from 1, and its cells by column, without spaces around."""

    line: int
    cells: dict[str, str]


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file in UTF-8, UTF-16 (Excel's "Unicode text") or Latin-1, with or without a byte order mark.

    Raises:
      ScanError: the file is missing, cannot be read or is no text.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except FileNotFoundError as e:
        raise ScanError(path, "the file is missing") from e
    except OSError as e:
        raise ScanError(path, f"cannot be read ({e.strerror or e})") from e
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    for encoding in (marked,) if marked else ("utf-8", "latin-1"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise ScanError(path, "cannot be read as text; save it as UTF-8")


def read_info(path: str | os.PathLike[str]) -> dict[str, str]:
    """The lines 'key: value' or 'key = value' of an Info.cfg; raises ScanError as `read_text`."""
    info: dict[str, str] = {}
    for line in read_text(path).splitlines():
        sign = min((s for s in (":", "=") if s in line), key=line.index, default="")
        key, _, value = line.partition(sign) if sign else ("", "", "")
        if key.strip():
            info[key.strip()] = value.strip()
    return info


def has_columns(path: str | os.PathLike[str], columns: Sequence[str]) -> bool:
    """Whether a file is a table with these columns; False for one that cannot be read at all."""
    try:
        return _header(read_text(path), columns) is not None
    except ScanError:
        return False


def read_table(path: str | os.PathLike[str], columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a CSV, whatever parts its columns (comma, semicolon, tab); rows without any content are left out.

    Args:
      path: the file.
      columns: those that must be there. Names match whatever their case and spaces; rows have them as given here.
      optional: names to match in the same way if they are there.

    Raises:
      ScanError: no text, no such columns, or a row that is no CSV; the text names file and row.
    """
    text = read_text(path)
    found = _header(text, columns, optional)
    if found is None:
        raise ScanError(path, f"no row with the columns {', '.join(columns)}; it must be a CSV with these names")
    delimiter, start, names = found
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    before = 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            values = [cell.strip() for cell in cells]
            if line <= start or not any(values):
                continue
            if any(values[len(names) :]):
                raise ScanError(
                    path, f"row {line} has {len(values)} cells, but the table has {len(names)} columns: correct the row"
                )
            values += [""] * (len(names) - len(values))
            yield Row(line, {name: value for name, value in zip(names, values, strict=False) if name})
    except csv.Error as e:
        raise ScanError(path, f"row {before + 1} cannot be read as CSV ({e})") from e


def _header(text: str, columns: Sequence[str], optional: Sequence[str] = ()) -> tuple[str, int, list[str]] | None:
    """(delimiter, line of the names, names) of a table; None if none of its first rows has the columns."""
    wanted = {_plain(column): column for column in (*optional, *columns)}
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        with contextlib.suppress(csv.Error):
            for cells in itertools.islice(reader, _TITLES):
                names = [wanted.get(_plain(cell), cell.strip()) for cell in cells]
                if set(columns) <= set(names):
                    return delimiter, reader.line_num, names
    return None


def _plain(name: str) -> str:
    """A column's name without case, spaces and underscores."""
    return "".join(name.split()).replace("_", "").casefold()
