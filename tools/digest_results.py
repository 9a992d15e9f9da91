"""Write what the package ships of the experiments' results: results/NAME.json without what no notebook reads."""

import json
import sys
from pathlib import Path

from gnewton.experiments import load
from gnewton.experiments.registry import REGISTRY


def main(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name, experiment in REGISTRY.items():
        digest = json.dumps(experiment.digest(load(name, source)), separators=(",", ":")) + "\n"
        (target / f"{name}.json").write_text(digest, encoding="utf-8")
        print(f"{name:12} {len(digest) / 1000:6.1f} kB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
