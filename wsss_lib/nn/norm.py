"""BatchNorm and views: an image that was made from another one is normalised, and leaves no trace.

One idea: running statistics serve the test, where there are whole images only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics as they are, whatever goes through meanwhile; a batch still uses its own.

    Parameters
    ----------
    module : nn.Module
        All its BatchNorms are meant; those that are frozen or in evaluation mode do so anyway.

    Examples
    --------
    >>> import torch
    >>> norm = nn.BatchNorm1d(1)
    >>> with still_statistics(norm):
    ...     norm(torch.tensor([[1.0], [3.0]])).flatten().round()
    tensor([-1.,  1.], grad_fn=<RoundBackward0>)
    >>> norm.running_mean, norm.momentum
    (tensor([0.]), 0.1)
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._NormBase)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
