"""The numbers of a profile: one TOML file each, read-only, every override checked against the keys that exist."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from wsss_lib.errors import SettingsError

PROFILES = ("smoke", "demo", "laptop", "paper")

# Sections that say where and how fast something is computed, not what: they are no part of a result's identity.
MACHINE_SECTIONS = ("machine",)


class Section(Mapping):
    """A read-only group of settings with attribute access.

    Parameters
    ----------
    values : mapping
        Names and values; a mapping among the values becomes a section of its own.

    Examples
    --------
    >>> cam = Section({"epochs": 5, "lr": 0.1})
    >>> cam.epochs, cam["lr"], dict(**cam)
    (5, 0.1, {'epochs': 5, 'lr': 0.1})
    """

    def __init__(self, values: Mapping[str, Any]):
        nested = {k: Section(v) if isinstance(v, Mapping) else v for k, v in values.items()}
        object.__setattr__(self, "_values", nested)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_") or key not in self._values:
            raise AttributeError(f"no setting {key!r}; there are {', '.join(self.__dict__.get('_values', ()))}")
        return self._values[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"settings are read-only: give {key!r} as an override")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Section({self._values})"


class Settings(Section):
    """All settings of one run: a profile's file with the overrides put in.

    Parameters
    ----------
    profile : str
        One of `PROFILES`.
    values : mapping
        Sections of values, overrides already put in.
    overrides : mapping
        What departs from the profile, ``{"section.key": value}``.

    Examples
    --------
    >>> settings = load("demo", {"cam.epochs": 3})
    >>> settings.cam.epochs, settings.changed(("cam",)), settings.changed(("localize",))
    (3, {'cam.epochs': 3}, {})
    """

    def __init__(self, profile: str, values: Mapping[str, Any], overrides: Mapping[str, Any]):
        super().__init__(values)
        object.__setattr__(self, "profile", profile)
        object.__setattr__(self, "overrides", dict(overrides))

    def changed(self, sections: tuple[str, ...]) -> dict[str, Any]:
        """The overrides that touch these sections, in alphabetical order."""
        return {k: v for k, v in sorted(self.overrides.items()) if k.split(".")[0] in sections}


def load(profile: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read a profile and put overrides in.

    Parameters
    ----------
    profile : str
        ``smoke``, ``demo``, ``laptop`` or ``paper``.
    overrides : mapping, optional
        ``{"section.key": value}``; a value must have the type of the one it replaces. An override that
        repeats the profile's own value is dropped.

    Returns
    -------
    Settings

    Raises
    ------
    SettingsError
        For an unknown profile or key, or a value of another type; the message names the nearest that exists.

    Examples
    --------
    >>> load("demo").localize.flip
    True
    >>> load("demo", {"cam.epoch": 3})
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: override 'cam.epoch': no such setting in profile 'demo'; did you mean 'cam.epochs'?
    """
    if profile not in PROFILES:
        raise SettingsError(f"profile={profile!r}: choose one of {', '.join(PROFILES)}")
    values = tomllib.loads(resources.files(__package__).joinpath(f"{profile}.toml").read_text(encoding="utf-8"))
    known = {f"{section}.{key}" for section, group in values.items() for key in group}
    kept = {}
    for name, value in (overrides or {}).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"sections are {', '.join(values)}"
            raise SettingsError(f"override {name!r}: no such setting in profile {profile!r}; {hint}")
        section, key = name.split(".")
        value = _as_type_of(values[section][key], value, name)
        if value != values[section][key]:
            values[section][key] = kept[name] = value
    return Settings(profile, values, kept)


def _as_type_of(old: Any, value: Any, name: str) -> Any:
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, list) and isinstance(value, list | tuple):
        return list(value)
    if type(value) is not type(old):
        raise SettingsError(
            f"override {name}={value!r}: expected a value like {old!r} ({type(old).__name__}),"
            f" received {type(value).__name__}"
        )
    return value
