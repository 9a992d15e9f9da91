"""All experiments, by name. A new experiment is a file with its ``EXPERIMENT``, and a line here."""

from difflib import get_close_matches

from gnewton.experiments import calibrated, groups, interaction, late, one_sample, race, scaling, unseen, untuned
from gnewton.experiments.experiment import Experiment

REGISTRY = {
    one.name: one
    for one in (
        *race.EXPERIMENTS,
        interaction.EXPERIMENT,
        untuned.EXPERIMENT,
        unseen.EXPERIMENT,
        one_sample.EXPERIMENT,
        calibrated.EXPERIMENT,
        groups.EXPERIMENT,
        late.EXPERIMENT,
        scaling.EXPERIMENT,
    )
}


def find(name: str) -> Experiment:
    """The experiment of this name; ValueError, with the nearest name, where there is none."""
    if name not in REGISTRY:
        near = get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise ValueError(f"expected one of {', '.join(REGISTRY)}, got {name!r}; {hint}")
    return REGISTRY[name]
