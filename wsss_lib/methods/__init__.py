"""Methods: one file each, with a class derived from `base.Method` and a function `build`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsss_lib.errors import WsssError

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.methods.base import Method

METHODS = ("cam",)


def build(name: str, backbone: Backbone, n_classes: int, settings: Any = None) -> Method:
    """Make the method called `name`; its file is `wsss_lib/methods/<name>.py`.

    Parameters
    ----------
    name : str
        One of `METHODS`.
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    settings : mapping or object, optional
        The method's own settings.

    Returns
    -------
    Method
        Ready to train.

    Raises
    ------
    WsssError
        If the name is unknown.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> build("cam", backbones.build("tiny"), n_classes=6).n_classes
    6
    """
    if name not in METHODS:
        raise WsssError(f"method={name!r} is unknown: choose one of {', '.join(METHODS)}")
    return import_module(f"wsss_lib.methods.{name}").build(backbone, n_classes, settings)
