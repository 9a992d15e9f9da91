"""Write what the package ships of the experiments' results: results/NAME.json without what no notebook reads."""

import argparse
import json
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
    parser = argparse.ArgumentParser(description="Write what the package ships of the experiments' results.")
    parser.add_argument("source", type=Path, help="the folder of the results")
    parser.add_argument("target", type=Path, help="the folder of the digests")
    given = parser.parse_args()
    main(given.source, given.target)
