"""Methods: one file each, with a class derived from `base.Method` and a function `build`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from wsss_lib.errors import SettingsError, WsssError

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.instances import InstanceBank
    from wsss_lib.methods.base import Method

METHODS = ("cam", "seam", "cda", "csd", "cpn", "deft", "ws_fcn")
SINGLE_STAGE = ("ws_fcn",)  # give masks themselves, see `segment.single_stage`
WRAPPERS = ("cda", "csd")  # have a host, and learn from instances that the masks of an earlier run cut out


def build(
    name: str,
    backbone: Backbone,
    n_classes: int,
    settings: Mapping[str, Mapping] | None = None,
    bank: InstanceBank | None = None,
) -> Method:
    """Make the method called `name`; its file is `wsss_lib/methods/<name>.py`.

    Parameters
    ----------
    name : str
        One of `METHODS`.
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    settings : mapping of mappings, optional
        Sections of a profile: a method finds its own under its name, and there its host's name.
    bank : InstanceBank, optional
        For the methods that learn from instances.

    Returns
    -------
    Method
        Ready to train.

    Raises
    ------
    WsssError
        If the name is unknown, a host has a host, or a host needs the super-pixels of images that a wrapper changes.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> build("cam", backbones.build("tiny"), n_classes=6).n_classes
    6
    """
    if name not in METHODS:
        raise WsssError(f"method={name!r} is unknown: choose one of {', '.join(METHODS)}")
    module = import_module(f"wsss_lib.methods.{name}")
    if name == "cam":  # has no settings of its own
        return module.build(backbone, n_classes)
    own = (settings or {}).get(name)
    if own is None:
        raise WsssError(
            f"{name}: settings without a section {name}; give those of a profile, e.g. settings.load('demo')"
        )
    if name not in WRAPPERS:
        return module.build(backbone, n_classes, own)
    if own["host"] in WRAPPERS:
        hosts = ", ".join(m for m in METHODS if m not in WRAPPERS)
        raise WsssError(f"{name}.host={own['host']!r} needs a host itself: choose one of {hosts}")
    if settings.get(own["host"], {}).get("patches") == "superpixel":
        raise SettingsError(
            f"{own['host']}.patches='superpixel': {name} makes new images, which have none; choose grid"
        )
    return module.build(build(own["host"], backbone, n_classes, settings), bank, own)
