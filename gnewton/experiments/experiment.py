"""What an experiment is: a name, a command, and the files that it writes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gnewton.experiments.protocol import Plan
from gnewton.experiments.report import text
from gnewton.plots import Figure, png
from gnewton.whole_file import write

Results = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One entry of the registry. ``python -m gnewton.experiments NAME`` runs it.

    Args:
        name: what is typed.
        title: one line for the list and the table.
        minutes: what it takes on one core.
        measure: measure(plan, command) runs or resumes it, and returns its numbers.
        report: report(numbers) is its tables and verdicts, in Markdown.
        figures: figures(numbers) is its figures, by the names in ``pictures``.
        pictures: the files of its figures, without the ending.
        after: experiments whose runs it reads.
        unread: keys of its numbers that no notebook reads. The digest in the package leaves them out.
    """

    name: str
    title: str
    minutes: float
    measure: Callable[[Plan, str], Results]
    report: Callable[[Results], str]
    figures: Callable[[Results], dict[str, Figure]]
    pictures: tuple[str, ...]
    after: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What a person types."""
        return f"python -m gnewton.experiments {self.name}"

    @property
    def writes(self) -> tuple[str, ...]:
        """The files of its folder, beside those of its runs."""
        return (f"{self.name}.json", f"{self.name}.md", *(f"{picture}.png" for picture in self.pictures))

    def run(self, plan: Plan) -> str:
        """Run or resume it, write its files, and return the report."""
        numbers = self.measure(plan, f"{self.command} --seeds {plan.seeds}" + " --quick" * plan.quick)
        shown, folder = self.report(numbers), plan.place(self.name)
        write(folder / f"{self.name}.json", text(numbers) + "\n")
        write(folder / f"{self.name}.md", f"# {numbers['title']}\n\n{shown}\n")
        for picture, figure in self.figures(numbers).items():
            write(folder / f"{picture}.png", png(figure))
        return f"{shown}\n\nSaved in {folder}"

    def digest(self, numbers: Results) -> Results:
        """Its numbers without what no notebook reads."""
        kept: Results = _without(numbers, self.unread)
        return kept


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(one, keys) for key, one in value.items() if key not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, list) else value
