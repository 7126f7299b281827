r"""The stochastic gate: in training an element is either deep or shallow, so the deep ones have to make up for both.

One idea: mixed plainly, deep and shallow features learn to lean on each other. Here the shallow ones stand in for
some elements at random, and the deep ones are changed such that the expectation stays :math:`x_d`. At test the two
are mixed, :math:`(1-\psi) x_d + \psi x_s`, which is not that expectation, on purpose. Araslanov and Roth,
Single-Stage Semantic Segmentation from Image Labels, CVPR 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_lib.errors import SettingsError, WsssError


def stochastic_gate(deep: Tensor, shallow: Tensor, psi: float = 0.3, training: bool = True) -> Tensor:
    r"""Mix two streams of features: element by element at random in training, by weights at test.

    .. math:: x = r \frac{x_d - \psi x_s}{1 - \psi} + (1 - r)\, x_s, \quad r \sim \mathrm{Bernoulli}(1 - \psi)

    Parameters
    ----------
    deep, shallow : Tensor
        :math:`x_d` and :math:`x_s`, of one shape.
    psi : float
        Share of the shallow stream, from 0 up to but not 1.
    training : bool
        Draw r, one for each element, from torch's default CPU generator; nothing is kept between calls, so each batch
        may have its own size. False: the mixture of the test.

    Returns
    -------
    Tensor
        Of the same shape; with ``psi=0`` the deep stream.

    Raises
    ------
    SettingsError
        For another psi.
    WsssError
        If the shapes differ.

    References
    ----------
    Araslanov and Roth 2020.

    Examples
    --------
    >>> deep, shallow = torch.ones(1000), torch.zeros(1000)
    >>> stochastic_gate(deep, shallow, training=False)[0]
    tensor(0.7000)
    >>> stochastic_gate(deep, shallow).unique()  # 0 for three of ten, 1 / 0.7 for the rest: a mean of 1
    tensor([0.0000, 1.4286])
    """
    if not 0 <= psi < 1:
        raise SettingsError(f"psi={psi}: give a share from 0 up to, but not, 1")
    if deep.shape != shallow.shape:
        raise WsssError(f"deep has shape {tuple(deep.shape)}, shallow {tuple(shallow.shape)}: bring them to one grid")
    if not training:
        return (1 - psi) * deep + psi * shallow
    from_shallow = (torch.rand(deep.shape) < psi).to(deep.device)
    return torch.where(from_shallow, shallow, (deep - psi * shallow) / (1 - psi))
