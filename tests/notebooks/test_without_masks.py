"""A lesson that compares with true masks says so at once where there are none, before it trains anything."""

import shutil

import nbformat
import pytest

from wsss_lib.errors import DataError


def test_says_so_before_any_training(committed, toy_root, tmp_path, monkeypatch):
    if committed.stem == "00_start":
        pytest.skip("shows masks where there are some, and goes on where there are none")
    root = tmp_path / "unlabelled"
    shutil.copytree(toy_root, root, ignore=shutil.ignore_patterns("SegmentationClass"))
    monkeypatch.setattr("wsss_lib.stages.fit", lambda *a, **k: pytest.fail("trained"))
    cells = [cell for cell in nbformat.read(committed, as_version=4).cells if cell.cell_type == "code"]
    place = {"data_root": str(root), "profile": "smoke", "dataset": "photos", "runs_root": str(tmp_path / "runs")}
    scope = {}
    with pytest.raises(DataError, match=r"no true masks in SegmentationClass/; "):
        for cell in cells:
            exec(cell.source, scope)
            if "parameters" in cell.metadata.get("tags", ()):
                scope |= place
