"""The two pictures of the front page, as SVG: ``python book/pictures.py`` writes book/pictures/*.svg.

They are dark on white; written into a page of the book, they take its colours by static/book.css, light or dark. What
colour says is said by a filled or an empty shape, or by the kind of line, as well.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

import gnewton as gn

FOLDER = Path(__file__).parent / "pictures"
INK, PAPER, MUTED = "#222", "#fff", "#767676"
PLUS, MINUS = "#0072B2", "#D55E00"

# Notebook: title in two lines, column and row in the graph, and those whose end it builds upon.
NOTEBOOKS = {
    "00-tour": ("Tour", "", 1, 0, []),
    "01-quadratics": ("Toy", "quadratics", 0, 1, ["00"]),
    "02-summary": ("Summary,", "derived", 1, 1, ["00"]),
    "03-digits": ("An MLP", "on digits", 1, 2, ["02"]),
    "04-newton-fails": ("When", "Newton fails", 0, 2, ["01", "02"]),
    "05-third-order": ("Third", "order", 1, 3, ["04"]),
    "06-partition": ("Choosing a", "partition", 1, 4, ["03", "05"]),
    "07-invariance": ("Invariance", "", 3, 2, ["02"]),
    "08-fast": ("How it is", "done fast", 2, 2, ["02"]),
    "09-noise": ("Noise", "", 2, 3, ["03"]),
    "10-convolutions": ("Convolutions", "and the GPU", 0, 5, ["06"]),
    "11-very-deep": ("Very deep", "networks", 1, 5, ["06"]),
    "12-one-sample": ("One sample,", "exactly", 0, 3, ["04"]),
    "13-race": ("The honest", "race", 2, 4, ["09"]),
    "14-your-model": ("Your own", "model", 3, 3, ["03"]),
}
CORE = {"00", "01", "02", "03", "04", "05", "06", "09", "13"}


def main() -> None:
    """Write both pictures."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "idea.svg").write_text(idea(), encoding="utf-8")
    (FOLDER / "prerequisites.svg").write_text(prerequisites(), encoding="utf-8")


# -- the idea ------------------------------------------------------------------------------------------------------


def idea() -> str:
    """A network in four groups, its summary and its four learning rates, all from the README's first example."""
    summary, rates = example()
    root = summary.hessian.diagonal().abs().sqrt()
    scaled = (summary.hessian / root[:, None] / root).tolist()
    slopes = (summary.gradient / summary.gradient.abs().max()).tolist()
    parts = [
        heading(28, "1", "Split the parameters into S groups: here 4."),
        *network(50),
        heading(212, "2", "Differentiate the loss by one rate per group."),
        text(60, 259, "ḡ", 22, "middle"),
        *squares([[g] for g in slopes], 36, 272),
        text(212, 259, "H̄", 22, "middle"),
        *squares(scaled, 116, 272),
        *key(36, 497),
        arrow(328, 368, 372, 368),
        text(505, 259, "η*", 22, "middle"),
        *bars(rates, 400, 272),
        heading(554, "3", "Newton's step, bounded by a cubic term:"),
        text(52, 586, "each group moves by its own learning rate.", 22),
    ]
    described = "Three steps: a network whose parameters form four groups; the gradient and Hessian of the loss with respect to four learning rates, as filled and empty squares; the four rates that follow."
    return svg(640, 604, "From a network to one learning rate per group", described, parts)


def example() -> tuple[gn.Summary, list[float]]:
    """The summary and the learning rates that the README prints."""
    data = gn.datasets.digits()
    model = gn.models.perceptron([64, 32, 10], generator=torch.Generator().manual_seed(0))
    partition = gn.Partition.by_tensor(model)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(data.train_x), data.train_y)

    summary = gn.summarize(loss, partition, gn.direction.gradient(loss, partition))
    return summary, gn.newton_step(summary, cubic=1.0).learning_rates.tolist()


def network(y: float) -> list[str]:
    """Four tensors in a row, from the input to the loss, each with the dial of its learning rate."""
    parts = [text(4, y + 36, "x", 22), text(612, y + 36, "L", 22)]
    names = ["W₁", "b₁", "W₂", "b₂"]
    widths, left = [130, 64, 110, 64], 56.0
    for s, (name, width) in enumerate(zip(names, widths, strict=True)):
        parts += [
            arrow(left - (38 if s else 32), y + 30, left - 6, y + 30),
            box(left, y, width, 58, PLUS, 2.5),
            text(left + width / 2, y + 37, name, 22, "middle"),
            line(left, y + 80, left + width, y + 80, MUTED, 2),
            f'<circle cx="{left + width * (0.3, 0.7, 0.45, 0.6)[s]:g}" cy="{y + 80:g}" r="8" fill="{PLUS}"/>',
            text(left + width / 2, y + 112, f"η{'₁₂₃₄'[s]}", 20, "middle"),
        ]
        left += width + 46
    return [*parts, arrow(left - 38, y + 30, left - 6, y + 30)]


def squares(rows: list[list[float]], x: float, y: float, size: float = 48) -> list[str]:
    """One square for each number in [-1, 1], of that area: filled for plus, empty for minus."""
    parts = [box(x, y, size * len(rows[0]), size * len(rows), MUTED, 1)]
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            side = max(3.0, (size - 6) * min(abs(value), 1.0) ** 0.5)
            left, top = x + j * size + (size - side) / 2, y + i * size + (size - side) / 2
            look = f'fill="{PLUS}"' if value > 0 else f'fill="none" stroke="{MINUS}" stroke-width="3"'
            parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}" {look}/>')
    return parts


def key(x: float, y: float) -> list[str]:
    plus = f'<rect x="{x:g}" y="{y - 13:g}" width="14" height="14" fill="{PLUS}"/>'
    minus = f'<rect x="{x + 131.5:g}" y="{y - 11.5:g}" width="11" height="11" fill="none" stroke="{MINUS}" stroke-width="3"/>'
    return [plus, text(x + 22, y, "positive", 20), minus, text(x + 152, y, "negative", 20)]


def bars(values: list[float], x: float, y: float, row: float = 48) -> list[str]:
    """One bar for each number, to the right for plus, to the left for minus, with the number beside it."""
    largest = max(map(abs, values))
    zero = x + 105
    parts = [line(zero, y, zero, y + row * len(values), MUTED, 1)]
    for s, value in enumerate(values):
        length, middle = 62 * abs(value) / largest, y + row * (s + 0.5)
        look = f'fill="{PLUS}"' if value > 0 else f'fill="none" stroke="{MINUS}" stroke-width="3"'
        left = zero if value > 0 else zero - length
        parts.append(f'<rect x="{left:.1f}" y="{middle - 9:g}" width="{length:.1f}" height="18" {look}/>')
        end = zero + length + 8 if value > 0 else zero - length - 8
        parts.append(text(end, middle + 7, f"{value:.1f}".replace("-", "−"), 20, "start" if value > 0 else "end"))
    return parts


# -- the course ----------------------------------------------------------------------------------------------------


def prerequisites() -> str:
    """Which notebook needs which, each a link to its page; the core has a thick frame, electives a dashed one."""
    place = {name[:2]: (column, row) for name, (_, _, column, row, _) in NOTEBOOKS.items()}
    parts = [edge(place[need], place[name[:2]]) for name, entry in NOTEBOOKS.items() for need in entry[-1]]
    for name, (first, second, column, row, _) in NOTEBOOKS.items():
        x, y, core = *corner(column, row), name[:2] in CORE
        frame = box(x, y, 79, 50, PLUS if core else MUTED, 2.5 if core else 1.5, "" if core else "4 3")
        lines = [f"<tspan font-weight='bold'>{name[:2]}</tspan>", first, second]
        words = [text(x + 39.5, y + 15 + 14 * i, line, 12, "middle") for i, line in enumerate(lines) if line]
        parts.append(f'<a href="notebooks/{name}.html">{frame}{"".join(words)}</a>')
    parts += [box(4, 445, 26, 14, PLUS, 2.5), text(36, 457, "core", 12)]
    parts += [box(84, 445, 26, 14, MUTED, 1.5, "4 3"), text(116, 457, "elective", 12)]
    parts += [arrow(186, 452, 212, 452, 1.5), text(218, 457, "is needed for", 12)]
    described = "An arrow leads from a notebook to one that needs it. " + "; ".join(
        f"{name[:2]} needs {' and '.join(needs)}" for name, (*_, needs) in NOTEBOOKS.items() if needs
    )
    return svg(360, 466, "Which notebook needs which", described, parts)


def corner(column: int, row: int) -> tuple[float, float]:
    return 3 + 91.5 * column, 3 + 74 * row


def edge(above: tuple[int, int], below: tuple[int, int]) -> str:
    """From the foot of one box to the head of another; past a box between them in the gap to its right."""
    (x1, y1), (x2, y2) = corner(*above), corner(*below)
    shift = 12 * (below[0] - above[0])
    start, end = (x1 + 39.5 + shift, y1 + 51), (x2 + 39.5 - shift, y2 - 6)
    if below[1] - above[1] == 1:
        return arrow(*start, *end, 1.5)
    gap = x1 + 85.3
    bend = f"M {x1 + 70:g} {y1 + 51:g} L {gap:g} {y1 + 70:g} V {y2 - 20:g}"
    return f'<path d="{bend}" fill="none" stroke="{INK}" stroke-width="1.5"/>' + arrow(
        gap, y2 - 20, x2 + 66, y2 - 6, 1.5
    )


# -- shapes --------------------------------------------------------------------------------------------------------


def svg(width: int, height: int, title: str, described: str, parts: list[str]) -> str:
    head = (
        '<marker id="head" viewBox="0 0 10 10" refX="5" refY="5" markerWidth="5" markerHeight="5" orient="auto-start-reverse">'
        f'<path d="M 0 0 L 10 5 L 0 10 z" fill="{INK}"/></marker>'
    )
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="group" class="drawn"'
        f' font-family="sans-serif" aria-label="{title}. {described}">'
    )
    paper = f'<rect width="{width}" height="{height}" fill="{PAPER}"/>'
    return "\n".join([opening, f"<title>{title}</title>", f"<defs>{head}</defs>", paper, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, size: int, anchor: str = "start") -> str:
    return f'<text x="{x:.4g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">{words}</text>'


def heading(y: float, number: str, words: str) -> str:
    disc = f'<circle cx="26" cy="{y - 7:g}" r="16" fill="none" stroke="{INK}" stroke-width="2"/>'
    return disc + text(26, y, number, 20, "middle") + text(52, y, words, 22)


def box(x: float, y: float, width: float, height: float, colour: str, thick: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {size} rx="5" fill="{PAPER}" stroke="{colour}" stroke-width="{thick:g}"{dashed}/>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, thick: float) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="{thick:g}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float, thick: float = 2) -> str:
    return line(x1, y1, x2, y2, INK, thick).replace("/>", ' marker-end="url(#head)"/>')


if __name__ == "__main__":
    main()
