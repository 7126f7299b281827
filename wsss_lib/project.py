"""Where the checkout lies, so that no path stands in the code and notebooks run from any folder inside it."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The checkout that the current folder lies in; without one, the current folder.

    Returns
    -------
    Path

    Examples
    --------
    >>> project_root().is_dir()
    True
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "wsss_lib" / "project.py").is_file():
            return folder
    return here


def runs_root() -> Path:
    """Where runs are kept: ``$WSSS_RUNS``, else ``runs/`` of the project.

    Returns
    -------
    Path

    Examples
    --------
    >>> isinstance(runs_root(), Path)
    True
    """
    return Path(os.environ.get("WSSS_RUNS") or project_root() / "runs")


def data_root() -> Path:
    """Where data are made and looked for: ``$WSSS_DATA``, else ``data/`` of the project.

    Returns
    -------
    Path

    Examples
    --------
    >>> isinstance(data_root(), Path)
    True
    """
    return Path(os.environ.get("WSSS_DATA") or project_root() / "data")
