"""The numbers of an experiment that has been run."""

import json
from importlib.resources import files
from pathlib import Path

from gnewton.experiments.experiment import Results
from gnewton.experiments.registry import find

DIGESTS = files(__package__) / "digests"


def load(name: str, folder: Path | None = None) -> Results:
    """The numbers of an experiment: those shipped with the package, or all of them from ``folder``/NAME.json.

    The package ships a digest: what the notebooks read. The repository keeps what was measured in ``results``; the
    single runs of ``calibrated`` are made again by its command.
    Raises ValueError for an unknown name, FileNotFoundError where there are no such results.

    >>> load("mpl")
    Traceback (most recent call last):
    ValueError: expected one of mlp, deep, lenet, vgg, autoencoder, interaction, untuned, unseen, one-sample, calibrated, groups, late, scaling, got 'mpl'; did you mean 'mlp'?
    """
    experiment = find(name)
    file = (DIGESTS if folder is None else folder) / f"{name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"expected results of {name} in {file}, got none; run it: {experiment.command}")
    numbers: Results = json.loads(file.read_text(encoding="utf-8"))
    return numbers
