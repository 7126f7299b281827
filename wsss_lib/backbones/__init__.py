"""Backbones: networks that turn an image into maps of features. `build` makes one by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from wsss_lib.errors import WsssError

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone

BACKBONES = {
    "tiny": ("wsss_lib.backbones.tiny", "Tiny"),
    "mobilenet_v1": ("wsss_lib.backbones.mobilenet_v1", "MobileNetV1"),
    "resnet50": ("wsss_lib.backbones.resnet", "ResNet50"),
    "resnet101": ("wsss_lib.backbones.resnet", "ResNet101"),
}
TORCHVISION = ("resnet50", "resnet101")  # there are weights to fetch, and dilations to put in the place of strides


def build(name: str, weights: str | Path = "", output_stride: int = 16, dilated: bool = False) -> Backbone:
    """Make the backbone called `name`.

    Parameters
    ----------
    name : str
        "tiny" (toy scenes), "mobilenet_v1" (photographs on a CPU), "resnet50" or "resnet101" (the papers).
    weights : str or Path
        "" draws them at random (from torch's global generator, which the caller seeds); "imagenet" fetches
        torchvision's (ResNets only; the one thing here that goes online); else a file with a state dict.
    output_stride : int
        The largest total stride wanted, in pixels; "tiny" never exceeds 4.
    dilated : bool
        Put dilations in the place of the strides that are lost (ResNets only), so that later layers see as much of
        the image as before.

    Returns
    -------
    Backbone
        In training mode, nothing frozen.

    Raises
    ------
    WsssError
        Unknown name, missing or unreadable file, weights of another network, or no dilated form.

    Examples
    --------
    >>> build("mobilenet_v1").out_channels
    768
    """
    if name not in BACKBONES:
        raise WsssError(f"backbone={name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    if dilated and name not in TORCHVISION:
        raise WsssError(
            f"dilated=True: {name} has no dilated form; choose {' or '.join(TORCHVISION)}, or dilated=False"
        )
    module, cls = BACKBONES[name]
    options = {"dilated": True} if dilated else {}
    net = getattr(import_module(module), cls)(output_stride=output_stride, **options)
    if str(weights):
        load_weights(net, read_weights(name, weights), source=str(weights))
    return net


def read_weights(name: str, weights: str | Path) -> dict:
    """Read a state dict from a file, or fetch torchvision's for "imagenet".

    Parameters
    ----------
    name : str
        The backbone that the weights are for.
    weights : str or Path
        "imagenet" or a file.

    Returns
    -------
    dict
        Tensors by parameter name.

    Raises
    ------
    WsssError
        If there is nothing to fetch, no such file, or the file is no state dict.

    Examples
    --------
    >>> read_weights("tiny", "nowhere.pth")
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: weights=nowhere.pth: no such file; give a state dict, or "" for random ones
    """
    import torch

    if str(weights) == "imagenet":
        if name not in TORCHVISION:
            raise WsssError(f'weights="imagenet": torchvision has none for {name}; give a file')
        from torchvision.models import get_model_weights

        try:
            return get_model_weights(name).IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
        except OSError as error:
            raise WsssError(f'weights="imagenet": could not fetch them ({error}); give a file') from error
    path = Path(weights)
    if not path.is_file():
        raise WsssError(f'weights={weights}: no such file; give a state dict, or "" for random ones')
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise WsssError(f"weights={weights}: no state dict ({reason}); save one with torch.save") from error


def load_weights(net: Backbone, state: dict, source: str = "weights") -> None:
    """Copy a state dict into `net`; every parameter must be there with its shape.

    Parameters
    ----------
    net : Backbone
        Changed in place.
    state : dict
        Tensors by parameter name; a classifier `fc` that the network lacks is left out.
    source : str
        The file's name for the message.

    Raises
    ------
    WsssError
        If names or shapes differ: how many, and the first of them.

    Examples
    --------
    >>> net = build("tiny")
    >>> load_weights(net, build("tiny").state_dict())
    """
    own = net.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.startswith("fc.")}
    faults = [f"{key} is missing" for key in own if key not in state]
    faults += [f"{key} is unknown" for key in state if key not in own]
    faults += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        raise WsssError(
            f"weights={source}: {len(faults)} keys do not fit {type(net).__name__} (first: {faults[0]}); "
            "give the state dict of that network"
        )
    net.load_state_dict(state)
