"""Notebooks as web pages that work without a network: pictures embedded, formulas typeset, answers folded.

Formulas become MathML, which every current browser shows by itself, if the package latex2mathml is installed. Without
it the page loads MathJax from the network.
"""
import html
import importlib.util
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from nbconvert import HTMLExporter
from nbformat import NotebookNode

from .notebooks import cover, findings, question, title

OFFLINE_MATH = importlib.util.find_spec("latex2mathml") is not None
PAGE_CSS = """
:root { color-scheme: light; --ink: #1c2026; --soft: #5a6472; --line: #dfe3e8; --paper: #f6f7f9; --blue: #0072b2;
        --jp-mirror-editor-keyword-color: #8a1a8a; --jp-mirror-editor-operator-color: #5a6472;
        --jp-mirror-editor-comment-color: #4d7a5a; --jp-mirror-editor-string-color: #a3341f;
        --jp-mirror-editor-number-color: #1a5fa8; --jp-mirror-editor-builtin-color: #1a5fa8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 54rem; color: var(--ink); background: white;
       font: 1.05rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
       overflow-wrap: break-word; }
a { color: var(--blue); }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 1.5rem 0 1rem; }
h2 { font-size: 1.4rem; margin: 2.5rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.text_cell p, .text_cell li { max-width: 46rem; }
img { max-width: 100%; height: auto; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .9em; background: var(--paper); border-radius: 3px; padding: .1em .25em; }
pre { font-size: .8rem; line-height: 1.45; margin: 0; overflow-x: auto; }
pre code { font-size: inherit; background: none; padding: 0; }
.highlight { background: var(--paper); border: 1px solid var(--line); border-radius: 5px; padding: .6rem .8rem; }
.code_cell { margin: 1rem 0; }
.output_area { padding: .4rem .8rem 0; overflow-x: auto; }
.output_stderr, .stopped { color: #8f3b00; }
.output_error pre { color: #8f1d1d; }
table { display: block; overflow-x: auto; width: max-content; max-width: 100%; border-collapse: collapse;
        font-size: .95rem; margin: 1rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: top; }
blockquote { margin: 1rem 0; padding-left: 1rem; border-left: 3px solid var(--line); color: var(--soft); }
.formula { overflow-x: auto; overflow-y: hidden; padding: .3rem 0; }
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math;
       font-size: 1.08em; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .95rem; }
nav { display: flex; justify-content: space-between; gap: 1rem; font-size: .92rem; padding: .8rem 0; }
nav a { text-decoration: none; }
nav a:last-child { text-align: right; }
body > nav:last-of-type { margin-top: 2.5rem; border-top: 1px solid var(--line); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.2rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 0 1.1rem .9rem; overflow: hidden; }
.card h2 { font-size: 1.15rem; line-height: 1.35; margin: .8rem 0 .3rem; padding: 0; border: 0; }
.card p { margin: .3rem 0; }
.card .picture { display: flex; height: 11rem; margin: 0 -1.1rem; padding: .6rem 1.1rem;
                 border-bottom: 1px solid var(--line); }
.card img { margin: auto; max-height: 100%; object-fit: contain; }
.card pre { white-space: pre-wrap; font-size: .74rem; }
.soft { color: var(--soft); font-size: .92rem; }
.ansi-red-fg, .ansi-red-intense-fg { color: #b3261e; } .ansi-green-fg, .ansi-green-intense-fg { color: #2e7d32; }
.ansi-blue-fg, .ansi-blue-intense-fg { color: #1f5fbf; } .ansi-cyan-fg { color: #00708a; }
.ansi-yellow-fg, .ansi-yellow-intense-fg { color: #8a5a00; } .ansi-bold { font-weight: bold; }
"""
# nbconvert's plain template. A cell whose source is hidden in JupyterLab is folded here.
PAGE_TEMPLATE = """
{%- extends 'classic/base.html.j2' -%}
{%- from 'mathjax.html.j2' import mathjax -%}
{%- block header -%}{% if resources.needs_mathjax %}{{ mathjax(resources.mathjax_url) }}{% endif %}{%- endblock -%}
{%- block input -%}
{%- set tags = cell.metadata.get('tags', []) -%}
{%- if cell.metadata.get('jupyter', {}).get('source_hidden') or 'hide-input' in tags -%}
<details><summary>{{ 'An answer' if 'exercise' in tags else 'Code' }}</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
{%- block markdowncell -%}{{ super() | typeset }}{%- endblock -%}
{%- block data_markdown -%}{{ super() | typeset }}{%- endblock -%}
"""
# A formula between dollar signs in HTML; what must not be touched (code, tags and their attributes) is matched first.
_FORMULA = re.compile(r"(<(code|pre)\b.*?</\2>|<[^>]*>)|\$\$(.+?)\$\$|\$([^$]+?)\$", re.S)


class Walk(NamedTuple):
    """One notebook as it ran.  minutes: None if it was not run now; stopped: why it ended early, "" if it did not."""
    path: Path
    notebook: NotebookNode
    minutes: float | None = None
    stopped: str = ""


def typeset(page: str) -> str:
    """HTML with its formulas as MathML; as it was if latex2mathml is not installed."""
    return _FORMULA.sub(lambda m: m[1] or _mathml(html.unescape(m[3] or m[4]), bool(m[3])), page) \
        if OFFLINE_MATH else page


def _mathml(tex: str, display: bool) -> str:
    from latex2mathml.converter import convert

    try:
        formula = convert(tex, display="block" if display else "inline")
    except Exception:               # TeX that it cannot read: the reader sees the source
        return f"<code>{html.escape(tex)}</code>"
    formula = re.sub(r"\\([_%&#$])", r"\1", formula)          # inside \text it keeps these as they are
    return f'<span class="formula" style="display: block">{formula}</span>' if display else formula


def _frame(name: str, head: str, nav: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(name)}</title>
{head}
<style>{PAGE_CSS}</style>
</head>
<body>
{nav}
<main>
{body}
</main>
{nav}
</body>
</html>
"""


def _nav(walk: Walk, others: list[Walk]) -> str:
    """Links to the page before, the front page and the page after, in the order of the notebooks."""
    def link(other: Walk, text: str) -> str:
        return f'<a href="{other.path.stem}.html">{text.format(html.escape(title(other.notebook)))}</a>'

    before = [other for other in others if other.path.stem < walk.path.stem]
    after = [other for other in others if other.path.stem > walk.path.stem]
    return "<nav>{}<a href='index.html'>Contents</a>{}</nav>".format(
        link(before[-1], "← {}") if before else "<span></span>", link(after[0], "{} →") if after else "<span></span>")


def write_notebook_page(walk: Walk, out: Path, others: list[Walk] = ()) -> Path:
    """Write one notebook as a page into the folder `out`, and copy the files beside the notebook that it refers to.

    others: the walks, in order, whose pages it links to
    """
    exporter = HTMLExporter(raw_template=PAGE_TEMPLATE, embed_images=True, exclude_input_prompt=True,
                            exclude_output_prompt=True, exclude_anchor_links=True)
    exporter.register_filter("typeset", typeset)
    body, resources = exporter.from_notebook_node(
        walk.notebook, {"metadata": {"path": str(walk.path.parent)}, "needs_mathjax": not OFFLINE_MATH})
    stems = {other.path.stem for other in others}
    body = re.sub(r'href="(\d\d_\w+)\.ipynb', lambda m: f'href="{m[1]}.html' if m[1] in stems else m[0], body)
    for name in set(re.findall(r'(?:href|src)="([\w.-]+)"', body)):
        if Path(name).suffix not in ("", ".ipynb") and (walk.path.parent / name).is_file():
            shutil.copy(walk.path.parent / name, out)
    if walk.stopped:
        body = f'<p class="stopped">This run {html.escape(walk.stopped)}</p>\n{body}'
    styles = "".join(f"<style>{css}</style>" for css in resources["inlining"]["css"])
    page = out / f"{walk.path.stem}.html"
    page.write_text(_frame(title(walk.notebook), styles, _nav(walk, others), body), encoding="utf-8")
    return page


def _card(walk: Walk) -> str:
    """A notebook on the front page: picture, title, one sentence, minutes, and its findings folded."""
    page, picture, found = f"{walk.path.stem}.html", cover(walk.notebook), findings(walk.notebook)
    minutes = "from an earlier run" if walk.minutes is None else f"{walk.minutes:.1f} minutes"
    parts = [f'<a class="picture" href="{page}"><img src="data:image/png;base64,{picture[0]}" '
             f'alt="{html.escape(picture[1])}"></a>' if picture else "",
             f'<h2><a href="{page}">{html.escape(title(walk.notebook))}</a></h2>',
             f"<p>{typeset(html.escape(question(walk.notebook), quote=False))}</p>",
             f'<p class="soft">{minutes}</p>',
             f'<p class="stopped">{html.escape(walk.stopped)}</p>' if walk.stopped else "",
             f"<details><summary>What it found</summary><pre>{html.escape(found)}</pre></details>" if found else ""]
    return f'<article class="card">{"".join(parts)}</article>'


def write_front_page(walks: list[Walk], out: Path) -> Path:
    """Write index.html: a card for every walk."""
    page = out / "index.html"
    cards = "\n".join(map(_card, walks))
    intro = "<h1>Self-calibrated convolutions, step by step</h1>" \
            "<p>A course in notebooks. Each asks one question, answers it by running code, and ends with exercises.</p>"
    page.write_text(_frame("SCNet: the notebooks", "", "", f'{intro}\n<div class="cards">\n{cards}\n</div>'),
                    encoding="utf-8")
    return page
