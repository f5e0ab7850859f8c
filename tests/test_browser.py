"""In a real browser: the walkthrough's pages on a phone, and the notebooks in JupyterLab, readable and run to the end.

By default every notebook is opened and the quickest is run; SCNET_BROWSER=all runs them all (some minutes).
Skipped without playwright (pip install playwright) or without a Chromium on this machine.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from scnet_minimal.lab.course import pages
from scnet_minimal.lab.course.notebooks import read_notebook

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = PATHS if os.environ.get("SCNET_BROWSER") == "all" else [p for p in PATHS if p.stem == "04_scnet"]
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"},            # every cell is in the page
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "docmanager-extension/plugin": {"autosave": False}}
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"

# What a reader would stumble over, as a list of sentences.
PROBLEMS = """() => {
    const found = [], panel = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)');
    const say = (what, e) => found.push(what + ': ' + (e.textContent || e.alt || '').trim().slice(0, 80));
    for (const e of panel.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"]')) say('error', e);
    for (const e of panel.querySelectorAll('[data-mime-type="application/vnd.jupyter.stderr"]'))
        if (!/\\d+%\\|.*\\d+\\/\\d+/.test(e.textContent)) say('stderr', e);          // a progress bar may be there
    for (const e of panel.querySelectorAll('.jp-OutputArea-output img, .jp-RenderedMarkdown img')) {
        if (!e.naturalWidth) say('picture not shown', e);
        if (e.closest('.jp-RenderedMarkdown') && !e.alt) say('picture without alt text', e);    // JupyterLab itself
    }                                           // leaves out that of outputs: the file and the web pages have it
    for (const e of panel.querySelectorAll('mjx-merror, .MathJax_Error')) say('equation not understood', e);
    for (const e of panel.querySelectorAll('.jp-RenderedMarkdown'))
        if (/\\$[^$\\n]{2,}\\$/.test(e.innerText)) say('equation not set', e);
    for (const e of panel.querySelectorAll('.jp-OutputArea-output, .jp-RenderedMarkdown, .jp-OutputArea-output img,'
                                           + '.jp-RenderedMarkdown img, table, mjx-container, .cm-scroller')) {
        const within = e.closest('.jp-Cell').getBoundingClientRect();
        if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth || e.getBoundingClientRect().right > within.right + 1)
            say('wider than the page', e);
    }
    for (const e of panel.querySelectorAll('.jp-OutputArea-output pre')) {
        if (!/\\S {2,}\\S/.test(e.textContent)) continue;                                // running text may wrap
        const rows = Math.round(e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).lineHeight));
        if (rows > e.textContent.replace(/\\n$/, '').split('\\n').length) say('a printed table wraps', e);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over a copy of the notebooks: its address."""
    root, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for name in ("scnet_minimal", "data"):
        (root / name).symlink_to(ROOT / name)
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
         "--IdentityProvider.token=", f"--ServerApp.root_dir={root}", f"--LabApp.user_settings_dir={home / 'settings'}",
         f"--LabApp.workspaces_dir={home / 'workspaces'}", "--LabApp.expose_app_in_browser=True"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"})
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture
def open_notebook(lab, browser):
    page = browser.new_context(viewport={"width": 1100, "height": 1000}).new_page()

    def open_one(path):
        page.goto(f"{lab}/{path.name}?reset", wait_until="domcontentloaded")
        count = len(nbformat.read(path, as_version=4).cells)
        page.wait_for_function(f"() => document.querySelectorAll('{PANEL} .jp-Cell').length === {count}",
                               timeout=90_000)
        page.evaluate("""() => { const shell = window.jupyterapp.shell;         // the document alone
            shell.mode = 'single-document'; shell.collapseLeft(); shell.collapseRight(); }""")
        wait_for_pictures_and_equations(page, path)
        return page

    yield open_one
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    page.context.close()


def wait_for_pictures_and_equations(page, path):
    cells = nbformat.read(path, as_version=4).cells
    equations = sum(cell.source.count("$$") // 2 for cell in cells if cell.cell_type == "markdown")
    page.wait_for_function(f"""() => document.querySelectorAll('{PANEL} mjx-container').length >= {equations}
        && [...document.querySelectorAll('{PANEL} img')].every(e => e.complete)""", timeout=60_000)
    page.wait_for_timeout(500)


# What is wrong with a page of the walkthrough; only code, tables and formulas may scroll sideways, inside themselves.
PAGE_PROBLEMS = """() => {
    const found = [], width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width) found.push('the page scrolls sideways');
    for (const e of document.images) if (!e.naturalWidth || !e.alt) found.push('a picture is missing, or its alt text');
    for (const e of document.querySelectorAll('.text_cell'))
        if (/\\$[^$\\n]{2,}\\$/.test(e.innerText)) found.push('a formula is not set: ' + e.innerText.slice(0, 80));
    for (const e of document.querySelectorAll('main *'))
        if (e.getBoundingClientRect().right > width + 1 && !e.closest('pre, table, .output_area, .formula'))
            found.push('wider than the page: ' + e.outerHTML.slice(0, 80));
    return found;
}"""


def test_pages_are_readable_on_a_phone_and_without_a_network(tmp_path, browser):
    if not pages.OFFLINE_MATH:
        pytest.skip("latex2mathml is not installed")
    walks = [pages.Walk(path, read_notebook(path), 1.0) for path in PATHS]
    written = [pages.write_notebook_page(walk, tmp_path, walks) for walk in walks]
    written.append(pages.write_front_page(walks, tmp_path))
    context = browser.new_context(viewport={"width": 390, "height": 900}, offline=True)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    for path in written:
        page.goto(path.as_uri())
        assert page.evaluate(PAGE_PROBLEMS) == [], path.name
    assert [url[:80] for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_opens_readable_with_its_figures_and_equations(open_notebook, path):
    page = open_notebook(path)
    cells = nbformat.read(path, as_version=4).cells
    assert page.evaluate(PROBLEMS) == []
    figures = sum("image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
    assert page.locator(f"{PANEL} .jp-OutputArea-output img").count() == figures > 0
    hints = page.locator(f"{PANEL} details")
    assert hints.count() == sum(cell.source.count("<details>") for cell in cells)
    answers = [i for i, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]
    for i in answers[:1]:                                           # an answer is one click away, and a hint as well
        cell = page.locator(f"{PANEL} .jp-Cell").nth(i)
        assert "SOLUTION" not in cell.inner_text()
        cell.locator(".jp-Placeholder").first.click()
        page.wait_for_function(f"i => document.querySelectorAll('{PANEL} .jp-Cell')[i].innerText.includes('SOLUTION')",
                               arg=i)
        assert not hints.first.evaluate("e => e.open")
        hints.first.locator("summary").click()
        assert hints.first.evaluate("e => e.open")


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_run_all_ends_without_an_error_and_as_readable(open_notebook, path):
    page = open_notebook(path)
    page.wait_for_function("""() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status
        === 'idle'""", timeout=90_000)          # a new kernel; what is sent before it listens is lost
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    unfolded = [cell.execution_count for cell in nbformat.read(path, as_version=4).cells
                if cell.cell_type == "code" and not cell.metadata.get("jupyter", {}).get("source_hidden")]
    prompts = f"[...document.querySelectorAll('{PANEL} .jp-CodeCell .jp-InputArea-prompt')].map(e => e.textContent)"
    page.wait_for_function(f"() => {prompts}.some(t => t.includes('*'))", timeout=60_000)
    page.wait_for_function(f"() => !{prompts}.some(t => t.includes('*'))", timeout=600_000, polling=500)
    wait_for_pictures_and_equations(page, path)
    assert page.evaluate(PROBLEMS) == []
    counts = re.findall(r"\d+", " ".join(page.evaluate(f"() => {prompts}")))
    assert [int(count) for count in counts] == unfolded
