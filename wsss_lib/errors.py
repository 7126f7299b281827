"""Errors that a user can mend: one line that names the file or argument, what was received, and the remedy."""


class WsssError(ValueError):
    """A mistake in what was asked for; its message is one line with the remedy.

    Examples
    --------
    >>> raise WsssError("seed=-1: give a seed of 0 or more")
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: seed=-1: give a seed of 0 or more
    """


class DataError(WsssError):
    """A fault in a data folder: names the file and the remedy.

    Examples
    --------
    >>> issubclass(DataError, WsssError)
    True
    """


class SettingsError(WsssError):
    """A fault in the settings: names the key and the values that exist.

    Examples
    --------
    >>> issubclass(SettingsError, WsssError)
    True
    """
