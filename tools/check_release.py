"""Whether the files tell one story about the release: ``python tools/check_release.py [TAG]``, or ``make release-check``.

The version stands in pyproject.toml; CITATION.cff and CHANGELOG.md have to name it, the changelog with a date, and so does the
tag, ``v`` and the version.
"""

import argparse
import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def problems(root: Path, tag: str | None) -> list[str]:
    """What does not agree with the version in pyproject.toml, a line each."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = re.findall(r"(?m)^version: (\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    complaints = []
    if cited != [version]:
        complaints.append(f"CITATION.cff: expected version {version}, got {', '.join(cited) or 'none'}")
    if not re.search(rf"(?m)^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes):
        complaints.append(f"CHANGELOG.md: expected a section ## [{version}] - YEAR-MONTH-DAY, got none")
    if tag is not None and tag != f"v{version}":
        complaints.append(f"tag: expected v{version}, got {tag}")
    return complaints


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Whether the files tell one story about the release.")
    parser.add_argument("tag", nargs="?", help="v and the version")
    given = parser.parse_args().tag
    if os.environ.get("GITHUB_REF_TYPE") == "tag":
        given = os.environ.get("GITHUB_REF_NAME")
    wrong = problems(ROOT, given)
    print("\n".join(wrong) or "The release is told the same everywhere.")
    sys.exit(1 if wrong else 0)
