"""Widgets of the notebooks as figures that move on the page: their saved description in place of the picture alone."""

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static" / "figures"
SCRIPTS = ("twins.js", "figures.js", "page.js")
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
    """The notebook with every widget's output as an HTML figure; its picture goes into a file of its own."""
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            described = output.get("metadata", {}).pop("gnewton", None)
            if described is not None:
                picture = output["data"].pop("image/png")
                file = f"{name}-{index}.png"
                (STATIC / file).write_bytes(base64.b64decode(picture))
                output["data"]["text/html"] = figure(json.loads(described), f"../_static/figures/{file}")
    return notebook


def figure(described: dict[str, Any], picture: str) -> str:
    """The element that ``figures.js`` brings to life. Without a script, and in print, the picture and its sentence stay."""
    sentence = escape(described["sentence"])
    # "</" would end the script wherever it stood.
    numbers = json.dumps(described, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<figure class="gn-figure" data-gnewton><img src="{picture}" width="704" alt="{sentence}">'
        f'<p class="gn-sentence">{sentence}</p><script type="application/json">{numbers}</script></figure>'
    )
