"""All notebooks, one after the other, with the smoke profile: the way a learner runs them, only smaller."""

import pytest

from wsss_lib import cli


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSSS_DATA", str(tmp_path_factory.mktemp("data")))
        done = cli.run(["all"], profile="smoke", runs_root=tmp_path_factory.mktemp("runs"))
    return {outcome.name: outcome for outcome in done}


@pytest.mark.notebooks
def test_every_notebook_runs_with_the_smoke_profile(outcomes):
    print("  ".join(f"{name} {outcome.seconds:.1f} s" for name, outcome in outcomes.items()))
    assert outcomes
    assert {name: o.message for name, o in outcomes.items() if not o.ok} == {}


@pytest.mark.notebooks
def test_executed_notebooks_and_their_pictures_lie_side_by_side(outcomes):
    for name, outcome in outcomes.items():
        assert outcome.path.parent.parts[-4:] == ("toy", "smoke", "notebooks", "seed0")
        assert list((outcome.path.parent / f"{name}_files").glob("*.png")), f"{name}: no pictures"
