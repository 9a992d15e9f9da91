"""``python -m gnewton.experiments``: the list; with names: run, resume, report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gnewton.experiments.protocol import Plan
from gnewton.experiments.registry import REGISTRY, find


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if not given.names:
        sys.stdout.write(listing() + "\n")
        return 0
    torch.set_num_threads(given.threads)
    plan = Plan(given.folder, given.seeds, given.quick)
    try:
        for name in given.names:
            sys.stdout.write(find(name).run(plan) + "\n")
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Finished runs are kept: the same command goes on from here.\n")
        return 130
    return 0


def listing() -> str:
    """One line for each experiment, with the time it takes."""
    lines = [
        f"{one.name:12} about {one.minutes:2.0f} min  {one.title}"
        + f" (after {', '.join(one.after)})" * bool(one.after)
        for one in REGISTRY.values()
    ]
    return "\n".join([*lines, "", "Run one: python -m gnewton.experiments NAME (on one core; --help for more)"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gnewton.experiments", description="Compare eight methods with equal budgets."
    )
    parser.add_argument("names", nargs="*", type=_name, metavar="NAME", help=f"{', '.join(REGISTRY)}; none lists them")
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
        find(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def _positive(number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {number!r}")
    return int(number)


if __name__ == "__main__":
    sys.exit(main())
