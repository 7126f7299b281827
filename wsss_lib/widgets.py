"""Sliders on top of `viz`: a picture that is drawn anew when a dial turns, and stays as a picture without a kernel.

The picture is an `ipywidgets.Image` whose bytes are set; `Output` and `interact` are avoided, since they can stall
a notebook that is executed headless.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

import ipywidgets
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from wsss_lib.viz import png


class Explorer(ipywidgets.VBox):
    """Dials above a picture; where widgets cannot run, the first picture is shown.

    Parameters
    ----------
    draw : callable
        Takes the dials' values by name, gives a matplotlib figure.
    dials : dict
        Name to ``(low, high, step, start)`` for a slider, or to a list of options for a menu.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> explorer = Explorer(lambda width: plt.figure(figsize=(width, 1)), {"width": (1, 3, 1, 1)})
    >>> before = explorer.picture.value; explorer.dials["width"].value = 3; explorer.picture.value != before
    True
    """

    def __init__(self, draw: Callable[..., Figure], dials: dict):
        self.draw = draw
        self.dials = {name: _dial(name, spec) for name, spec in dials.items()}
        self.picture = ipywidgets.Image(format="png", value=self._drawn())
        self._first = self.picture.value
        for dial in self.dials.values():
            dial.observe(self._redraw, "value")
        super().__init__([*self.dials.values(), self.picture])

    def _drawn(self) -> bytes:
        return png(self.draw(**{name: dial.value for name, dial in self.dials.items()}))

    def _redraw(self, _change) -> None:
        self.picture.value = self._drawn()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        return {**data, "image/png": b64encode(self._first).decode()}


def explore(draw: Callable[..., Figure], caption: str, **dials) -> Explorer:
    """Show dials, their picture and a caption.

    Parameters
    ----------
    draw : callable
        Takes the dials' values by name, gives a matplotlib figure.
    caption : str
        What to turn and what to look at.
    **dials
        ``name=(low, high, step, start)`` for a slider, ``name=[...]`` for a menu.

    Returns
    -------
    Explorer

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> _ = explore(lambda x: plt.figure(figsize=(1, 1)), "Turn x.", x=(0.0, 1.0, 0.1, 0.5))  # doctest: +ELLIPSIS
    Explorer(...
    """
    explorer = Explorer(draw, dials)
    display(explorer)
    display(Markdown(f"*Figure: {caption}*"))
    return explorer


def _dial(name: str, spec):
    label = name.replace("_", " ")
    wide = {"style": {"description_width": "8em"}, "layout": {"width": "30em"}}
    if isinstance(spec, list):
        return ipywidgets.Dropdown(options=spec, description=label, **wide)
    low, high, step, start = spec
    kind = ipywidgets.IntSlider if all(isinstance(v, int) for v in spec) else ipywidgets.FloatSlider
    return kind(min=low, max=high, step=step, value=start, description=label, continuous_update=False, **wide)
