"""Settings: every profile holds the same keys, overrides are checked, nothing can be changed afterwards."""

import pytest

from wsss_lib.errors import SettingsError
from wsss_lib.settings import PROFILES, load


@pytest.mark.parametrize("profile", PROFILES)
def test_all_profiles_hold_the_same_sections_and_keys(profile):
    keys = {section: set(values) for section, values in load("demo").items() if section != "toy"}
    assert {s: set(v) for s, v in load(profile).items() if s != "toy"} == keys


def test_an_override_replaces_one_value_and_leaves_the_rest():
    plain, changed = load("demo"), load("demo", {"cam.epochs": 3})
    assert changed.cam.epochs == 3
    assert {**changed.cam, "epochs": plain.cam.epochs} == dict(plain.cam)


def test_an_override_that_repeats_the_profile_is_no_departure():
    settings = load("demo", {"cam.epochs": load("demo").cam.epochs})
    assert settings.overrides == {}


def test_an_integer_is_taken_where_a_decimal_number_stands():
    assert load("demo", {"cam.lr": 1}).cam.lr == 1.0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"cam.epoch": 1}, "did you mean 'cam.epochs'"),
        ({"cam.epochs": "three"}, "expected a value like"),
        ({"cam.epochs": True}, "received bool"),
        ({"epochs": 1}, "no such setting"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_remedy(overrides, words):
    with pytest.raises(SettingsError, match=words) as error:
        load("demo", overrides)
    assert "\n" not in str(error.value)


def test_an_unknown_profile_names_those_that_exist():
    with pytest.raises(SettingsError, match="smoke, demo, laptop, paper"):
        load("quick")


def test_settings_are_read_only():
    with pytest.raises(AttributeError, match="override"):
        load("demo").cam.epochs = 3
