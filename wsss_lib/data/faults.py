"""What is wrong with a data folder, as a value: collected, so that a check can list all at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_lib.errors import DataError


class Fault(NamedTuple):
    """One fault in a data folder; as text it is the line `file: problem -> remedy`.

    Parameters
    ----------
    file : Path
        The file, or folder, that has the fault.
    problem : str
        What is wrong.
    remedy : str
        What mends it.

    Examples
    --------
    >>> print(Fault(Path("a.jpg"), "missing", "add it to JPEGImages"))
    a.jpg: missing -> add it to JPEGImages
    """

    file: Path
    problem: str
    remedy: str

    def __str__(self) -> str:
        """Return the fault as one line."""
        return " ".join(f"{self.file}: {self.problem} -> {self.remedy}".split("\n"))

    def error(self, more: int = 0) -> DataError:
        """Return the fault as an error to raise; `more` counts the faults found beside it."""
        # The error's argument is the fault itself, not its text, so that a check can take it back and go on.
        return DataError(f"{self} (and {more} more)" if more else self)


def raise_first(faults: Sequence[Fault]) -> None:
    """Raise the first fault, if there is one, and say how many more there are.

    Parameters
    ----------
    faults : sequence of Fault
        What was found; may be empty.

    Raises
    ------
    DataError
        When there is at least one fault.

    Examples
    --------
    >>> raise_first([Fault(Path("a.jpg"), "missing", "add it"), Fault(Path("b.jpg"), "missing", "add it")])
    Traceback (most recent call last):
    wsss_lib.errors.DataError: a.jpg: missing -> add it (and 1 more)
    """
    if faults:
        raise faults[0].error(more=len(faults) - 1)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a remedy for a name that does not exist: the nearest ones that do, else all of them.

    Parameters
    ----------
    name : str
        The unknown name.
    names : iterable of str
        The names that exist.

    Returns
    -------
    str
        A remedy, to be put behind the arrow of a `Fault`.

    Examples
    --------
    >>> nearest("aeroplan", ["aeroplane", "boat"])
    'did you mean aeroplane?'
    >>> nearest("zebra", ["aeroplane", "boat"])
    'use one of: aeroplane, boat'
    """
    names = list(names)
    close = difflib.get_close_matches(name.lower(), names, n=2)
    return f"did you mean {' or '.join(close)}?" if close else f"use one of: {', '.join(names)}"
