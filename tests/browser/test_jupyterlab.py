"""A learner's way: open a lesson in JupyterLab, run all cells, turn a slider, and see the picture change."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from wsss_lib.cli import NEEDS

pytestmark = [pytest.mark.browser, pytest.mark.notebooks]
PROJECT = Path(__file__).resolve().parents[2]
LESSONS = tuple(NEEDS)
SECONDS = 240  # for a lesson to run with the smoke profile, the stages before it included
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SETTINGS = {  # all cells in the page, not only those in view; no questions about news
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
# An error looks like stderr on the page, so the notebook itself is asked.
STATE = """() => {
    const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type === 'code');
    const outputs = cells.flatMap(c => c.outputs.toJSON());
    return {
        waiting: cells.filter(c => !c.executionCount && c.sharedModel.source.trim()).length,
        errors: outputs.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue),
    };
}"""
KERNEL = "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab over copies of the lessons, with its own settings and the smoke profile."""
    if not CHROMIUM:
        pytest.skip("no browser: install chromium, or name yours in CHROMIUM")
    root = tmp_path_factory.mktemp("lab")
    for lesson in LESSONS:
        notebook = nbformat.read(PROJECT / "notebooks" / f"{lesson}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
        nbformat.write(notebook, root / f"{lesson}.ipynb")
    for name in ("wsss_lib", "results"):
        (root / name).symlink_to(PROJECT / name)
    for name, settings in SETTINGS.items():
        path = root / ".settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, log = secrets.token_hex(8), root / "jupyter.log"
    folders = {
        "JUPYTER_CONFIG_DIR": ".config",
        "JUPYTERLAB_SETTINGS_DIR": ".settings",
        "JUPYTERLAB_WORKSPACES_DIR": ".workspaces",
        "JUPYTER_RUNTIME_DIR": ".runtime",
        "IPYTHONDIR": ".ipython",
        "WSSS_RUNS": "runs",
        "WSSS_DATA": "data",
    }
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={root}",
        f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            stdout=out,
            stderr=out,
            env={**os.environ, **{k: str(root / v) for k, v in folders.items()}, "WSSS_PROFILE": "smoke"},
        )
    try:
        _wait_for(lambda: _answers(f"http://127.0.0.1:{port}/api/status?token={token}"), 60, log)
        yield lambda lesson: f"http://127.0.0.1:{port}/lab/tree/{lesson}.ipynb?token={token}&reset"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def page(lab):
    """A page of a browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": 1280, "height": 1600})
        browser.close()


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_runs_in_jupyterlab_and_its_first_dial_changes_its_picture(lab, page, lesson):
    from playwright.sync_api import expect

    page.goto(lab(lesson), wait_until="domcontentloaded")
    notebook = page.locator(".jp-NotebookPanel:visible").first
    notebook.wait_for(timeout=60_000)
    _wait_for(lambda: page.evaluate(KERNEL) == "idle", 60, f"{lesson}: its kernel")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    _wait_for(lambda: (state := page.evaluate(STATE))["errors"] or not state["waiting"], SECONDS, lesson)
    assert page.evaluate(STATE)["errors"] == []

    # The first; the others need not change this scene: a bias of 1 redraws only what disagrees with it.
    dial = notebook.locator(".jp-OutputArea :is([role=slider], select)").first
    expect(dial).to_be_visible(timeout=30_000)
    picture = dial.locator("xpath=ancestor::div[contains(@class,'jp-Cell-outputArea')][1]").locator("img").last
    dial.scroll_into_view_if_needed()
    before, value = picture.screenshot(), dial.get_attribute("aria-valuenow")
    if value is None:
        dial.select_option(index=dial.locator("option").count() - 1)
    else:
        dial.focus()
        page.keyboard.press("Home" if value == dial.get_attribute("aria-valuemax") else "End")
    _wait_for(lambda: picture.screenshot() != before, 30, f"{lesson}: the picture stays as it is")
    assert value is None or dial.get_attribute("aria-valuenow") != value


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


def _wait_for(true, seconds: float, what) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain: {what}"
        time.sleep(0.2)
