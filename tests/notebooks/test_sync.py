"""The committed notebooks say what their sources say."""


def test_sources_and_committed_notebooks_are_in_step(builder):
    found = builder.differences(builder.NOTEBOOKS / "src", builder.NOTEBOOKS)
    assert not found, "run make notebooks:\n" + "\n".join(found)
    assert builder.sources(builder.NOTEBOOKS / "src"), "there are no sources"
