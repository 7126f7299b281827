"""What the names in the settings choose: a dense CRF, a refinement of the CAMs, the numbers of a walk.

One idea: a profile holds names and numbers; here they become the objects that `wsss_lib.refine` and `wsss_lib.segment`
take. A wrong name or number is refused here, which costs nothing, and not after hours of training.
"""

from __future__ import annotations

from dataclasses import replace

from wsss_lib.errors import SettingsError
from wsss_lib.refine import affinity_net, irnet
from wsss_lib.refine.dense_crf import MaskSettings
from wsss_lib.refine.mean_field import HARD, PRESETS, DenseCRFSettings
from wsss_lib.refine.pamr import PAMRSettings
from wsss_lib.refine.walk import WalkSettings
from wsss_lib.segment.single_stage import SingleStageSettings
from wsss_lib.train import pick_device

# What makes masks of CAMs: a threshold, dense CRF, PAMR, or a walk along affinities that a network has learnt.
AFFINITY_NETWORKS = {"affinity_net": affinity_net, "irnet": irnet}
REFINEMENTS = ("none", "dense_crf", "pamr", *AFFINITY_NETWORKS)


def crf_settings(settings, section: str) -> DenseCRFSettings | None:
    """The dense CRF that a section names: a preset's, the profile's own, or none.

    Presets of `HARD` refine labels that are made of maps; a segmentation network's scores cannot have them.

    Parameters
    ----------
    settings : Settings
        Of a profile.
    section : str
        ``refine``, ``single_stage``, ``segment``, or labels or walk of an affinity network. Its ``crf`` is a name of
        `PRESETS`, ``"own"`` for the numbers of ``[dense_crf]``, or ``""``.

    Returns
    -------
    DenseCRFSettings or None
        None for ``""``.

    Raises
    ------
    SettingsError
        For another name, or one that is of no use there.

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> crf_settings(load("paper"), "refine").bilateral_sxy, crf_settings(load("paper"), "segment").bilateral_sxy
    (80.0, 67)
    """
    name = settings[section].crf
    if name == "own":
        return DenseCRFSettings(**{key: settings.dense_crf[key] for key in DenseCRFSettings.__dataclass_fields__})
    known = [preset for preset in PRESETS if section != "segment" or preset not in HARD]
    if name and name not in known:
        raise SettingsError(
            f'{section}.crf={name!r}: choose "own" (the numbers of [dense_crf]), "" (none) or a preset:'
            f" {', '.join(known)}"
        )
    return PRESETS.get(name)


def mask_settings(settings) -> MaskSettings:
    """How pseudo masks are made of maps, out of the section ``refine`` and those that it names.

    Parameters
    ----------
    settings : Settings
        Of a profile.

    Returns
    -------
    MaskSettings

    Raises
    ------
    SettingsError
        For another ``refine.how``, or another dense CRF.

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> mask_settings(load("paper")).background, mask_settings(load("paper", {"refine.how": "pamr"})).pamr.iterations
    ('power', 10)
    >>> mask_settings(load("paper", {"refine.how": "irnet"}))
    MaskSettings(background='constant', alpha=16.0, threshold=0.25, crf=None, hard=False, la_ha=(), pamr=None)
    """
    return _masks(settings)[0]


def mask_sections(settings) -> tuple[str, ...]:
    """The sections of the settings that pseudo masks depend on, beside what their maps do.

    Parameters
    ----------
    settings : Settings
        Of a profile.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> mask_sections(load("paper")), mask_sections(load("paper", {"refine.how": "irnet"}))
    (('dense_crf',), ('irnet_walk',))
    """
    return _masks(settings)[1]


def _masks(settings) -> tuple[MaskSettings, tuple[str, ...]]:
    # One case a refinement: what it does, and the sections that say so.
    how, own = settings.refine.how, settings.dense_crf
    crf = crf_settings(settings, "refine")  # refuses another name, whether it is asked for or not
    scored = MaskSettings(own.background, own.alpha, own.theta, crf=None, la_ha=tuple(own.la_ha))
    if how == "none":
        return MaskSettings("constant", threshold=settings.localize.threshold, crf=None), ("refine",)
    if how == "dense_crf":
        masks = replace(scored, crf=crf, hard=settings.refine.crf in HARD)
        # The profile's own numbers stand alone, as before there were other refinements: so runs keep their names.
        return masks, ("dense_crf",) if settings.refine.crf == "own" else ("dense_crf", "refine")
    if how == "pamr":
        device = str(pick_device(settings.machine.device))
        pamr = PAMRSettings(settings.pamr.iterations, tuple(settings.pamr.dilations), device)
        return replace(scored, pamr=pamr), ("dense_crf", "refine", "pamr")
    if how in AFFINITY_NETWORKS:
        walk, crf = settings[f"{how}_walk"], crf_settings(settings, f"{how}_walk")
        masks = MaskSettings("constant", threshold=walk.theta, crf=crf, hard=walk.crf in HARD)
        return masks, with_crf(settings, f"{how}_walk")
    raise SettingsError(f"refine.how={how!r}: choose one of {', '.join(REFINEMENTS)}")


def affinity_label_settings(settings) -> MaskSettings:
    """How sure pixels are found, out of the section of labels that ``refine.how`` names.

    Parameters
    ----------
    settings : Settings
        Of a profile.

    Returns
    -------
    MaskSettings

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> affinity_label_settings(load("paper", {"refine.how": "irnet"})).la_ha
    (0.3, 0.05)
    """
    section = settings[f"{settings.refine.how}_labels"]
    crf = crf_settings(settings, f"{settings.refine.how}_labels")
    return MaskSettings(section.background, crf=crf, hard=section.hard, la_ha=tuple(section.la_ha))


def walk_settings(settings) -> WalkSettings:
    """How maps walk, out of the section that ``refine.how`` names.

    Parameters
    ----------
    settings : Settings
        Of a profile.

    Returns
    -------
    WalkSettings

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> walk_settings(load("paper", {"refine.how": "irnet"})).beta
    10.0
    """
    section = settings[f"{settings.refine.how}_walk"]
    return WalkSettings(section.beta, section.t, section.background, section.alpha)


def single_stage_settings(settings) -> SingleStageSettings:
    """How a single-stage method's masks are made, out of the sections ``single_stage`` and ``dense_crf``.

    Parameters
    ----------
    settings : Settings
        Of a profile.

    Returns
    -------
    SingleStageSettings

    Raises
    ------
    SettingsError
        For another ``single_stage.crf``, or a number out of its range.

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> single_stage_settings(load("paper")).mask.background, single_stage_settings(load("demo")).mask.background
    ('power', 'constant')
    """
    own, crf = settings.single_stage, crf_settings(settings, "single_stage")
    plain = MaskSettings("constant", threshold=own.theta, crf=None)
    refined = MaskSettings("power", alpha=own.alpha, crf=crf, hard=own.crf in HARD)
    return SingleStageSettings(tuple(own.scales), own.flip, own.class_cut, refined if crf else plain)


def with_crf(settings, section: str) -> tuple[str, ...]:
    """A section that names a dense CRF, and that of the CRF's numbers where it takes them.

    Parameters
    ----------
    settings : Settings
        Of a profile.
    section : str
        As in `crf_settings`.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> with_crf(load("paper"), "segment"), with_crf(load("paper", {"segment.crf": "own"}), "segment")
    (('segment',), ('segment', 'dense_crf'))
    """
    return (section, "dense_crf") if settings[section].crf == "own" else (section,)
