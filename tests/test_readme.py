"""Commands that the README and other pages show exist, and so do the files that they name."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from wsss_lib import cli

PROJECT = Path(__file__).resolve().parent.parent
README = PROJECT / "README.md"
TEXTS = [path for path in (README, PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").glob("*.md")) if path.is_file()]
TARGETS = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.M))
PROGRAMS = ("make", "wsss", "python", "papermill")


def commands():
    """Lines of code blocks, and code in running text, that begin with one of our programs."""
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
        prose = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        for line in [*blocks.splitlines(), *prose]:
            line = re.sub(r"\s+#.*", "", line.strip().removeprefix("$ "))
            for part in re.split(r"\s*(?:&&|;|\|)\s*", line):
                words = shlex.split(re.sub(r"^([A-Z_]+=\S+\s+)+", "", part), comments=True) if part else []
                words[:1] = [Path(words[0]).name] if words else []
                if words and words[0] in PROGRAMS and len(words) > 1:
                    yield pytest.param(words, id=f"{path.name}: {' '.join(words)}")


def test_there_is_a_readme_with_the_two_commands():
    shown = [p.values[0] for p in commands()]
    assert README.is_file() and ["make", "demo"] in shown and ["make", "test"] in shown


@pytest.mark.parametrize("words", list(commands()))
def test_command_exists(words, capsys):
    program, *rest = words
    if program == "make":
        targets = [word for word in rest if "=" not in word and not word.startswith("-")]
        assert set(targets) <= TARGETS, f"the Makefile has {', '.join(sorted(TARGETS))}"
    elif program == "wsss":
        args = cli.parser().parse_args(rest)  # exits with a message where it does not parse
        if args.command == "run":
            chosen = cli.select(args.names, cli.notebooks_folder())
            known = {key for name in chosen for key in cli.parameters_of(cli.notebooks_folder() / f"{name}.ipynb")}
            assert set(cli.parse_pairs(args.parameter, "-p")) <= known
        if args.command in ("run", "masks"):
            _settings_exist(args)
    elif program == "papermill":
        notebook = PROJECT / rest[0]
        assert notebook.is_file()
        given = {rest[i + 1] for i, word in enumerate(rest) if word == "-p"}
        assert given <= set(cli.parameters_of(notebook))
    elif "-m" in rest:
        module, *options = rest[rest.index("-m") + 1 :]
        assert importlib.util.find_spec(module)
        if module == "data_prep":
            _accepts(module, options)
    else:
        assert (PROJECT / rest[0]).is_file() or rest[0].startswith("-")


def _settings_exist(args):
    from wsss_lib import settings

    settings.load(args.profile or "demo", cli.parse_pairs([p for ps in args.override for p in ps], "--set"))


def _accepts(module, options):
    """The sub-command exists and its help names every option used."""
    sub = [word for word in options[:1] if not word.startswith("-")]
    command = [sys.executable, "-m", module, *sub, "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in (word.split("=")[0] for word in options if word.startswith("--")):
        assert option in done.stdout, f"{option} is no option of {module} {' '.join(sub)}"


def links():
    for path in TEXTS:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"", text):
            target = "".join(target)
            if not re.match(r"[a-z]+:", target):
                yield pytest.param(path, target, id=f"{path.name}: {target}")


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_relative_link_leads_to_a_file_or_heading(page, target):
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists(), f"{path} does not exist"
    if anchor:
        heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
        slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
        assert anchor in slugs, f"{file.name} has no heading #{anchor}"
