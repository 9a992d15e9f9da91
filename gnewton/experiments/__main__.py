"""``python -m gnewton.experiments``: the list; with names: run, resume, report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gnewton.experiments import NAMES, check, interaction, one_sample, untuned
from gnewton.experiments.networks import PROBLEMS
from gnewton.experiments.pictures import figure
from gnewton.experiments.protocol import Plan, compare
from gnewton.experiments.report import results, table, text, verdict
from gnewton.experiments.runs import write
from gnewton.plots import Figure, png

_INTERACTION_MINUTES = 60
_ONE_SAMPLE_MINUTES = 12


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if not given.names:
        sys.stdout.write(listing() + "\n")
        return 0
    torch.set_num_threads(given.threads)
    plan = Plan(given.folder, given.seeds, given.quick)
    try:
        for name in given.names:
            sys.stdout.write(run(name, plan) + "\n")
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Finished runs are kept: the same command goes on from here.\n")
        return 130
    return 0


def listing() -> str:
    """One line for each experiment, with the time it takes."""
    lines = [f"{p.name:12} about {p.minutes:2.0f} min  {p.title}" for p in PROBLEMS.values()]
    lines.append(
        f"{'interaction':12} about {_INTERACTION_MINUTES:2.0f} min  {interaction.TITLE} (after these have run)"
    )
    for name, title in untuned.TITLES.items():
        minutes = sum(p.minutes for p in untuned.NETWORKS[name].values())
        lines.append(f"{name:12} about {minutes:2.0f} min  {title}")
    lines.append(f"{'one-sample':12} about {_ONE_SAMPLE_MINUTES:2.0f} min  {one_sample.TITLE}")
    return "\n".join([*lines, "", "Run one: python -m gnewton.experiments NAME (on one core; --help for more)"])


def run(name: str, plan: Plan) -> str:
    """Run or resume one experiment, write its JSON, table and figures, and return the table."""
    command = f"python -m gnewton.experiments {name} --seeds {plan.seeds}" + " --quick" * plan.quick
    if name == "interaction":
        numbers = interaction.interact(plan, command)
        shown, drawn = interaction.report(numbers), interaction.figures(numbers)
    elif name in untuned.NETWORKS:
        numbers = untuned.measure(plan, command, name)
        shown, drawn = untuned.report(numbers), untuned.figures(numbers)
    elif name == "one-sample":
        numbers = one_sample.measure(plan, command)
        shown, drawn = one_sample.report(numbers), one_sample.figures(numbers)
    else:
        numbers = results(compare(PROBLEMS[name], plan), command)
        shown, drawn = f"{table(numbers)}\n\n{verdict(numbers)}", {name: figure(numbers)}
    folder = plan.place(name)
    write(folder / f"{name}.json", text(numbers) + "\n")
    write(folder / f"{name}.md", f"# {numbers['title']}\n\n{shown}\n")
    save(folder, drawn)
    return f"{shown}\n\nSaved in {folder}"


def save(folder: Path, drawn: dict[str, Figure]) -> None:
    for name, one in drawn.items():
        write(folder / f"{name}.png", png(one))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gnewton.experiments", description="Compare eight methods with equal budgets."
    )
    parser.add_argument("names", nargs="*", type=_name, metavar="NAME", help=f"{', '.join(NAMES)}; none lists them")
    parser.add_argument(
        "--folder", type=Path, default=Path("experiments"), help="results go to FOLDER/NAME (experiments)"
    )
    parser.add_argument("--seeds", type=_positive, default=5, help="runs of each chosen setting (5)")
    parser.add_argument(
        "--threads", type=_positive, default=1, help="threads; networks this small gain little from more (1)"
    )
    parser.add_argument("--quick", action="store_true", help="one epoch, two settings: to see that it works")
    return parser


def _name(name: str) -> str:
    try:
        check(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def _positive(number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {number!r}")
    return int(number)


if __name__ == "__main__":
    sys.exit(main())
