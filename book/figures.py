"""Widgets of the notebooks as figures that move on the page: their saved description in place of the picture alone."""

import base64
import io
import json
import re
from html import escape
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static" / "figures"
SCRIPTS = ("twins.js", "figures.js", "page.js", "walkers.js")
STYLE = "figures.css"


def copy_scripts() -> None:
    """The package's own scripts and style, under the book's static files."""
    import gnewton.teaching

    source = Path(gnewton.teaching.__file__).parent / "static"
    STATIC.mkdir(parents=True, exist_ok=True)
    for name in (*SCRIPTS, STYLE):
        (STATIC / name).write_bytes((source / name).read_bytes())


def draw_idea(target: Path) -> None:
    """The figure of the front page: the README's network on real digits, four groups, and the loss that answers."""
    import torch
    import torch.nn.functional as F

    import gnewton as gn
    from gnewton.teaching import FourRates

    data = gn.datasets.digits()
    model = gn.models.perceptron([64, 32, 10], generator=torch.Generator().manual_seed(0))
    partition = gn.Partition.by_tensor(model)
    idea = FourRates(lambda: F.cross_entropy(model(data.train_x), data.train_y), partition, parts=(1.0,) * 4)
    (STATIC / "idea.png").write_bytes(idea.png)
    target.write_text(figure(idea.describe(), "_static/figures/idea.png"), encoding="utf-8")


def with_figures(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """The notebook as a page shows it: widgets that move, questions without their code, exercises with their hints."""
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            described = output.get("metadata", {}).pop("gnewton", None)
            if described is not None:
                _move(output, json.loads(described), f"{name}-{index}.png")
            elif "image/png" in output.get("data", {}):
                output["data"]["image/png"] = lighten_picture(output["data"]["image/png"])
                _widen(cell, output["data"]["image/png"])
            _adapt(cell, output)
        _break_lines(cell)
    return notebook


def _move(output: dict[str, Any], described: dict[str, Any], file: str) -> None:
    """An output that the page's scripts bring to life; the picture of a figure goes into a file of its own."""
    data = output["data"]
    if "walker" in described:
        data["text/html"] = walker(described, "".join(data["text/html"]))
        return
    (STATIC / file).write_bytes(base64.b64decode(data.pop("image/png")))
    data["text/html"] = figure(described, f"../_static/figures/{file}")


def _widen(cell: dict[str, Any], picture: str) -> None:
    """A picture of several panels gets a class: on a telephone it scrolls, since shrunk its letters could not be read."""
    from PIL import Image

    if Image.open(io.BytesIO(base64.b64decode(picture))).width > 800:
        cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["classes"] = "several-panels"


def _break_lines(cell: dict[str, Any]) -> None:
    """Printed sentences break where the window ends; a table, whose columns stand apart by more than one space, scrolls."""
    printed = ["".join(output.get("text", "")) for output in cell.get("outputs", [])]
    if any(printed) and not any(re.search(r"\S {2,}\S", text) for text in printed):
        cell["metadata"].setdefault("tags", []).append("sentences")


def _adapt(cell: dict[str, Any], output: dict[str, Any]) -> None:
    """A question shows no code, a solution says that it is one, and an exercise gives its hints in place of "your turn"."""
    said = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    if said.startswith("Quiz: "):
        cell["metadata"]["tags"] = ["remove-input"]
    elif "solution" in cell["metadata"].get("tags", []):
        cell["metadata"].setdefault("mystnb", {})["code_prompt_show"] = "Show the solution"
    elif match := re.match(r"Exercise (\d\d\.\d): your turn", said):
        output.pop("text"), output.pop("name")
        output |= {"output_type": "display_data", "metadata": {}, "data": {"text/html": exercise(match[1])}}


def exercise(number: str) -> str:
    """What stands below an exercise on a page, where nothing checks it: where to do it, and its hints, one inside the other."""
    from gnewton.teaching.exercises.exercise import find

    hints = find(number).hints
    folded = ""
    for n, hint in reversed(list(enumerate(hints, 1))):
        folded = f"<details><summary>Hint {n} of {len(hints)}</summary><p>{escape(hint)}</p>{folded}</details>"
    return (
        f"<div class='gn-exercise'><p>Exercise {number}: your turn. Do it on paper, or in your own copy (<code>make lab</code>), "
        f"which checks what you write.</p>{folded}</div>"
    )


def lighten_picture(picture: str) -> str:
    """A PNG in base 64 with 256 colours, where that is smaller."""
    from PIL import Image

    given, buffer = base64.b64decode(picture), io.BytesIO()
    image = Image.open(io.BytesIO(given)).convert("RGB")
    image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(min(given, buffer.getvalue(), key=len)).decode()


def walker(described: dict[str, Any], lines: str) -> str:
    """The element that ``walkers.js`` brings to life. Without a script all lines stay, checked on the first example."""
    return f'<div class="gn-figure gn-walker" data-gnewton-walker>{lines}{_script(described)}</div>'


def figure(described: dict[str, Any], picture: str) -> str:
    """The element that ``figures.js`` brings to life. Without a script the picture stays, which says its sentence itself; with
    one it is gone before it is loaded. The sentence as text is for the search."""
    sentence = escape(described["sentence"])
    return (
        f'<figure class="gn-figure" data-gnewton><img src="{picture}" width="704" loading="lazy" alt="{sentence}">'
        f'<p class="gn-spoken">{sentence}</p>{_script(described)}</figure>'
    )


def _script(described: dict[str, Any]) -> str:
    # "</" would end the script wherever it stood.
    numbers = json.dumps(described, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return f'<script type="application/json">{numbers}</script>'
