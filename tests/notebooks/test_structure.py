"""What every committed notebook keeps to: one parameters cell, no errors, captions, size, length, order."""

import re

import nbformat
import pytest

from wsss_lib import cli

MEGABYTE = 1_000_000
LAST_SECTIONS = ("exercises", "questions", "take-aways", "references")


@pytest.fixture
def notebook(committed):
    return nbformat.read(committed, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def headings(notebook):
    return re.findall(r"^#{1,3} (.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)


def test_is_valid_and_every_cell_has_an_id_of_its_own(notebook):
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_has_exactly_one_parameters_cell_with_the_common_parameters(notebook, committed):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(tagged) == 1
    common = {"profile", "dataset", "data_root", "runs_root", "seed", "overrides"}
    assert common <= set(cli.parameters_of(committed))


def test_every_code_cell_was_executed_in_order_and_without_an_error(notebook):
    cells = [cell for cell in code(notebook) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    errors = [o.evalue for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert not errors


def test_every_figure_is_directly_followed_by_its_caption(notebook):
    for number, cell in enumerate(notebook.cells, 1):
        outputs = cell.get("outputs", [])
        for this, following in zip(outputs, [*outputs[1:], None], strict=False):
            if "image/png" in this.get("data", {}):
                caption = (following or {}).get("data", {}).get("text/markdown", "")
                assert caption.startswith("*Figure"), f"cell {number}: a figure without a caption under it"


def test_is_at_most_one_megabyte(committed):
    assert committed.stat().st_size <= MEGABYTE


def test_nothing_in_it_names_a_machine(notebook, builder):
    for number, cell in enumerate(notebook.cells, 1):
        shown = list(builder.texts(cell)) if cell.cell_type == "code" else []
        for text in [cell.source, *shown]:
            assert not builder.machine_text(text), f"cell {number}: {builder.machine_text(text)}"
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "widgets"}
    assert notebook.metadata.kernelspec.name == "python3"


def test_is_as_long_as_a_lesson(notebook):
    assert 40 <= len(notebook.cells) <= 90


def test_code_cells_are_short_and_the_text_is_longer_than_the_code(notebook):
    for number, cell in enumerate(notebook.cells, 1):
        assert cell.cell_type != "code" or len(cell.source.splitlines()) <= 40, f"cell {number}: over 40 lines"
    written = sum(len(c.source) for c in notebook.cells if c.cell_type == "markdown")
    assert written > sum(len(c.source) for c in code(notebook))


def test_ends_with_exercises_questions_take_aways_and_references(notebook):
    found = [next((s for s in LAST_SECTIONS if s in h.lower()), None) for h in headings(notebook)]
    assert [s for s in found if s][-4:] == list(LAST_SECTIONS), headings(notebook)[-6:]


def test_the_command_line_knows_it(committed):
    assert committed.stem in cli.NEEDS, f"add a line to NEEDS in wsss_lib/cli.py for {committed.stem}"
