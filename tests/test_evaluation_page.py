"""The page on evaluation: its tables are those of the code, its examples run."""

import doctest
import re

import pytest

from wsss_lib import choices, stages
from wsss_lib.protocols import MASKS, PROTOCOLS, SEEDS
from wsss_lib.refine.mean_field import LA_HA, PRESETS
from wsss_lib.settings import load


@pytest.fixture
def tables(script):
    return script("docs", "tables")


@pytest.fixture
def page(project):
    return (project / "docs" / "evaluation.md").read_text(encoding="utf-8")


def rows(page, name):
    """The cells of a table, row by row, by the name in the first."""
    table = re.search(rf"<!-- table: {name} -->\n(.*?)\n<!-- end -->", page, re.S)[1]
    cells = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:])
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_pages_tables_are_those_of_the_code(tables, page):
    assert tables.fill(page) == page, "run python docs/tables.py"
    assert set(re.findall(r"<!-- table: (\w+) -->", page)) == set(tables.TABLES)


def test_every_protocol_preset_and_pair_stands_in_the_page_with_its_numbers(page):
    assert set(rows(page, "maps")) == set(rows(page, "seeds")) == set(SEEDS) and set(rows(page, "masks")) == set(MASKS)
    for name, protocol in SEEDS.items():
        rule, reach, *_ = rows(page, "seeds")[name]
        ends = [protocol.sweep[0], *protocol.sweep[1:][-1:]]
        assert re.findall(r"\d\.\d\d", rule.replace("steps of 0.01", "")) == [f"{x:.2f}" for x in ends]
        assert re.findall(r"\d\.\d\d", reach)[0] == f"{protocol.thresholds[0]:.2f}"
    for name, protocol in PROTOCOLS.items():
        assert protocol.repository in rows(page, "maps" if name in SEEDS else "masks")[name]
    for name, crf in PRESETS.items():
        numbers = [float(x) for x in re.findall(r"\d+", " ".join(rows(page, "crfs")[name][2:]))]
        widths = crf.bilateral_sxy, crf.bilateral_srgb, crf.bilateral_compat
        assert numbers == [crf.iterations, crf.gaussian_sxy, crf.gaussian_compat, *widths]
    for name, pair in (LA_HA["power"] | LA_HA["constant"]).items():
        assert [float(x) for x in rows(page, "pairs")[name][1:]] == list(pair)


def test_a_number_that_changed_in_the_page_or_in_the_code_is_seen(tables, page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "PAGE", tmp_path / "evaluation.md")
    tables.PAGE.write_text(page, encoding="utf-8")
    assert tables.main(["--check"]) == 0
    tables.PAGE.write_text(page.replace("| 67 / 3 / 4 |", "| 67 / 3 / 5 |"), encoding="utf-8")
    assert tables.main(["--check"]) == 1 and "run python docs/tables.py" in capsys.readouterr().err
    assert tables.main([]) == 0 and tables.PAGE.read_text(encoding="utf-8") == page


def test_every_crf_that_the_pages_commands_ask_for_exists(page):
    asked = re.findall(r"--set (\w+)\.crf=(\w*)", page)
    assert {section for section, _ in asked} == {"refine", "segment", "single_stage"}
    for section, name in asked:
        assert choices.crf_settings(load("demo", {f"{section}.crf": name}), section) == PRESETS.get(name)


def test_the_pages_examples_run(page, smoke_run):
    stages.make_cams(smoke_run)  # so that its progress is not taken for an example's output
    blocks = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S))
    examples = doctest.DocTestParser().get_doctest(blocks, {"run": smoke_run}, "page", "evaluation.md", 0)
    assert len(examples.examples) > 10
    told = []
    result = doctest.DocTestRunner(verbose=False).run(examples, out=told.append)
    assert result.failed == 0, "".join(told)
