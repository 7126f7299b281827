"""`python -m data_prep`: help that helps, exit codes that mean something, errors of one line."""

import subprocess
import sys

import pytest

from data_prep.__main__ import main

SMALL = ["--n-train", "3", "--n-val", "2", "--size", "32"]


@pytest.fixture
def scenes(tmp_path, capsys):
    assert main(["toy", "--out", str(tmp_path / "scenes"), *SMALL]) == 0
    capsys.readouterr()
    return tmp_path / "scenes"


@pytest.mark.parametrize("command", [[], ["toy"], ["check"], ["superpixels"]])
def test_help_is_shown(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "usage: python -m data_prep" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_help_of_toy_names_every_dial_and_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["toy", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for dial in ("n-train", "n-val", "size", "context-bias", "pair-bias", "part-contrast", "seed"):
        assert f"--{dial} " in out
    assert out.count("(default: ") == 7


def test_toy_passes_every_dial_on(tmp_path, monkeypatch, capsys):
    from data_prep import toy

    asked = []
    monkeypatch.setattr(toy, "generate", lambda out, scenes, progress: asked.append((out, scenes)) or out)
    dials = {
        "n_train": 5,
        "n_val": 4,
        "size": 48,
        "context_bias": 0.25,
        "pair_bias": 0.75,
        "part_contrast": 0.5,
        "seed": 9,
    }
    arguments = [text for name, value in dials.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["toy", "--out", str(tmp_path / "x"), *arguments]) == 0
    assert asked == [(tmp_path / "x", toy.ToyScenes(**dials))]
    assert capsys.readouterr().out == f"{tmp_path / 'x'}: 5 training and 4 validation scenes\n"


def test_what_toy_draws_has_no_fault(scenes, capsys):
    assert main(["check", str(scenes)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in out[:2]] == [
        "train: 3 images, 3 with a mask",
        "val: 2 images, 2 with a mask",
    ]
    assert out[2:] == ["no faults"]


def test_check_lists_each_fault_on_a_line_and_exits_with_one(scenes, capsys):
    (scenes / "JPEGImages" / "train_00000.jpg").unlink()
    (scenes / "JPEGImages" / "val_00001.jpg").write_bytes(b"")
    assert main(["check", str(scenes)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert "train_00000.jpg: no such image -> add it" in out[0]
    assert "val_00001.jpg: empty file -> copy or download it again" in out[1]
    assert out[-1] == "2 faults"


def test_superpixels_are_made_once_for_every_image_of_every_split(scenes, tmp_path, capsys):
    command = ["superpixels", str(scenes), "--out", str(tmp_path / "cut"), "--processes", "1", "--segments", "9"]
    for made in (5, 0):
        assert main(command) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'cut'}: super-pixels of 5 images, {made} made now\n"
    names = {path.stem for path in (scenes / "JPEGImages").iterdir()}
    assert {path.stem for path in (tmp_path / "cut").iterdir()} == names
    assert main([*command, "--compactness", "3"]) == 0
    assert "5 made now" in capsys.readouterr().out


def test_superpixels_of_one_split(scenes, tmp_path, capsys):
    command = ["superpixels", str(scenes), "--out", str(tmp_path / "cut"), "--processes", "1"]
    assert main([*command, "--split", "val"]) == 0
    assert "super-pixels of 2 images, 2 made now" in capsys.readouterr().out
    assert main([*command, "--split", "test"]) == 2
    assert "test.txt: no such split -> use one of: train, val" in capsys.readouterr().err
    assert main([*command, "--segments", "0"]) == 2
    assert "n_segments=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "no/such/folder"], "error: no/such/folder: no such folder -> give"),
        (["toy", "--out", "x", "--size", "3"], "error: size=3: "),
        (["toy", "--out", __file__], "error: "),
        (["superpixels", "no/such/folder", "--out", "x"], "error: no/such/folder: no such folder -> give"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exits_with_two(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["toy"], ["check"], ["superpixels", "x"], ["bake"], ["toy", "--out", "x", "--size", "big"]]
)
def test_wrong_usage_exits_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_interruption_is_no_traceback(monkeypatch, capsys, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.toy.generate", interrupted)
    assert main(["toy", "--out", str(tmp_path / "x")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_module_runs_and_checking_does_not_wait_for_torch(scenes, project):
    code = "import sys, data_prep.__main__ as m; m.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "check", str(scenes)]
    assert subprocess.run(command, cwd=project, capture_output=True, timeout=60).returncode == 0
    command = [sys.executable, "-m", "data_prep", "check", str(scenes / "JPEGImages")]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "not in VOC layout" in done.stderr
