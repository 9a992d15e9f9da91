"""The web book: the notebooks as they were saved, and reference pages from the docstrings. Build it with `make book`."""

import inspect
import json
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # for benchmarks, which is not installed, and figures.py beside this file

from figures import SCRIPTS, STYLE, copy_scripts, draw_idea, with_figures  # noqa: E402
from light import PARTS, lighten  # noqa: E402

PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
# The one setting behind the buttons for the repository, Binder and Colab: under [project.urls] of pyproject.toml,
# Repository = "https://github.com/OWNER/NAME". As long as it is not there, no button appears.
REPOSITORY = PROJECT.get("urls", {}).get("Repository")


def copy_notebooks() -> None:
    """Bring ../notebooks under the book's own folder, which Sphinx wants of its sources; unchanged files keep their date."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    sources = {path.name: path for path in (HERE.parent / "notebooks").glob("*.ipynb")}
    for stale in {path.name for path in target.iterdir()} - sources.keys():
        (target / stale).unlink()
    copy_scripts()
    for name, source in sources.items():
        copy, notebook = target / name, json.loads(source.read_text(encoding="utf-8"))
        text = json.dumps(with_figures(notebook, source.stem), ensure_ascii=False)
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def draw_experiments() -> None:
    """Tables, words and figures of the results under the book's own folder, from their numbers."""
    from gnewton.experiments import load
    from gnewton.experiments.registry import REGISTRY
    from gnewton.plots import png

    target = HERE / "results"
    target.mkdir(exist_ok=True)
    for name, experiment in REGISTRY.items():
        numbers = load(name, HERE.parent / "results")
        shown, drawn = experiment.report(numbers), experiment.figures(numbers)
        where = numbers["machine"]
        measured = f"`{numbers['command']}`, torch {numbers['versions']['torch']}, {where['processor']}, one core."
        (target / f"{name}.md").write_text(f"{shown}\n\nMeasured {numbers['date']} by {measured}\n", encoding="utf-8")
        for file, figure in drawn.items():
            (target / f"{file}.png").write_bytes(png(figure))


def tabulate_costs() -> None:
    """What a summary costs, from the shipped benchmark: one line a network, in gradients, by the engine and by passes."""
    from benchmarks.report import RESULTS, number, table

    costs: dict[str, list[str]] = {}
    for order in (2, 3):
        for network in json.loads((RESULTS / f"work-order-{order}.json").read_text()):
            if (network["groups"], network["threads"]) == ("by tensor", 1):
                ratio = {row["peer"]: row.get("ratio") for row in network["rows"]}
                cells = [number(ratio["engine"]), number(ratio["tightened"])]
                costs.setdefault(network["network"], [network["network"], network["S"]]).extend(cells)
    header = ["network", "S", "H-bar", "by nested passes", "with order 3", "by nested passes"]
    (HERE / "results" / "costs.md").write_text(table(header, list(costs.values())) + "\n", encoding="utf-8")


def draw_cards() -> None:
    """What has been measured on accelerators, or that nothing has."""
    from benchmarks.gpu import FOLDER
    from benchmarks.gpu_report import page

    (HERE / "results" / "gpu.md").write_text(page(FOLDER) + "\n", encoding="utf-8")


copy_notebooks()
draw_experiments()
draw_idea(HERE / "results" / "idea.html")
tabulate_costs()
draw_cards()

project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
project_copyright = f"2026 {author}. Text CC BY 4.0, code MIT"
release = PROJECT["version"]
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas without a network
    "sphinxcontrib.bibtex",
]
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
exclude_patterns = ["_build", "LICENSE", "results/*.md"]  # tables, which other pages include

# Notebooks: nothing runs here, so the page shows what the tests compare with. A widget is shown by its picture.
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "image/png", 1)]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
# MyST leaves raw HTML alone, and the questions to unfold hold formulas: MathJax looks at the whole page instead.
myst_update_mathjax = False
mathjax3_config = {
    "loader": {"load": PARTS},
    "tex": {"inlineMath": [["$", "$"], ["\\(", "\\)"]], "processEscapes": True},
}

# Reference: types of other packages cannot be linked without a network; our own must resolve.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
python_use_unqualified_type_names = True
nitpick_ignore_regex = [("py:.*", r"(?!gnewton).*")]

html_theme = "sphinx_book_theme"
html_title = "gnewton"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["book.css", f"figures/{STYLE}"]
html_js_files = [f"figures/{name}" for name in SCRIPTS]
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system says
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "navbar_persistent": [],  # a search field stands in the sidebar already
}
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": "main",
        "use_repository_button": True,
        # The buttons open notebooks/NAME.ipynb of the repository, of which this folder holds copies.
        "path_to_docs": "",
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }


def _bars_are_bars(_app, _what, _name, _object, _options, lines):
    # Docstrings write |H| and ||u|| as formulas; to reStructuredText a bar opens a substitution.
    lines[:] = [line if line.lstrip().startswith((">>>", "...")) else line.replace("|", r"\|") for line in lines]


def _a_list_of_items(_app, _page, _template, context, _doctree):
    # An entry of a bibliography outside a list of that role tells a screen reader nothing.
    if "doc-biblioentry" in context.get("body", ""):
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def _arguments_of_a_widget(_app, _what, _name, documented, _options, signature, returns):
    # Of a widget autodoc finds the __new__ of traitlets, which takes anything.
    if signature != "(*args, **kwargs)":
        return None
    known = inspect.signature(documented)
    bare = [p.replace(annotation=p.empty) for p in known.parameters.values()]
    return str(known.replace(parameters=bare, return_annotation=known.empty)), returns


def _lighten(app, error):
    if error is None and app.builder.format == "html":
        lighten(Path(app.outdir))


def setup(app):
    # The extension asks for all of MathJax in one file, 1.2 MB with a menu that nobody opens.
    app.config.mathjax_path = "mathjax/startup.js"
    app.connect("build-finished", _lighten)
    app.connect("autodoc-process-signature", _arguments_of_a_widget)
    app.connect("html-page-context", _a_list_of_items)
    app.connect("autodoc-process-docstring", _bars_are_bars)
