"""Run make targets as a newcomer would: ``python tools/alone.py [TARGET ...]``, all of ``make help`` by default.

Each target is the first command in a fresh clone, in a folder with a space in its name, with an empty home and without pip's
cache; started by root, it runs as the user "nobody". It fails if make fails or if anything was written into the home folder.
A clone of what is committed takes a minute to install, and everything together an hour. Of the long test runs, which ``make test`` and the
others run whole elsewhere, a part is run: what may fail alone is what comes before the first test.
"""

import argparse
import os
import pwd
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# make hands it on to every pytest that it starts.
PART = "PYTEST_ADDOPTS=-k 'test_partition or 00-tour'"
# What a person would wait for, or look at, is cut short; this target would call itself, the other one needs a version.
ARGUMENTS = {
    "bench": ["BENCH_ARGS=--quick"],
    "browser-test": ["BROWSER_ARGS=-k 'page and 00-tour'"],
    "lab": ["LAB_ARGS=--version"],
    "notebooks": ["NB=00"],
    "reports": ["FOLDER=notebooks"],
    "test-ranks": ["PYTEST_ADDOPTS=-k torchrun"],
    "test-zoo": ["ZOO_ARGS=-k peft"],
    "test-zoo-part": ["ZOO_ARGS=-k zuko"],
}
ARGUMENTS |= {
    name: [PART]
    for name in ("test", "unit", "notebooks-test", "test-elsewhere", "unit-elsewhere", "notebooks-elsewhere")
}
LEFT_OUT = {"test-alone", "test-torch"}


def main(chosen: list[str]) -> int:
    """Run the targets one after the other; return the number of those that failed."""
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = [name for name in re.findall(r"(?m)^  make ([a-z-]+)", listed) if name not in LEFT_OUT]
    if unknown := set(chosen) - set(targets):
        sys.exit(f"expected targets out of {', '.join(targets)}, got {', '.join(sorted(unknown))}")
    verdicts = {target: run(target) for target in chosen or targets}
    for target, verdict in verdicts.items():
        print(f"{target:20} {verdict}")
    return sum(verdict != "passed" for verdict in verdicts.values())


def run(target: str) -> str:
    """Make one target alone; return "passed" or what went wrong."""
    print(f"== make {target}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fresh clone ", ignore_cleanup_errors=True) as folder:
        clone, home = Path(folder, "g newton"), Path(folder, "home")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        home.mkdir()
        user = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            subprocess.run(["chown", "--recursive", f"{nobody.pw_uid}:{nobody.pw_gid}", folder], check=True)
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        command = ["make", target, *ARGUMENTS.get(target, [])]
        status = subprocess.run(command, cwd=clone, env=environment(home), stdin=subprocess.DEVNULL, **user).returncode
        written = sorted(path.name for path in home.iterdir())
    if status:
        return f"failed, exit status {status}"
    return f"wrote into the home folder: {', '.join(written)}" if written else "passed"


def environment(home: Path) -> dict[str, str]:
    """A newcomer's environment: nothing but where things lie, and how pip reaches its index from here."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LC_", "TMP"))}
    path = "/usr/local/bin:/usr/bin:/bin" if os.geteuid() == 0 else os.environ["PATH"]
    return kept | {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "PIP_NO_CACHE_DIR": "1"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run make targets as a newcomer would.")
    parser.add_argument("targets", nargs="*", metavar="target", help="of make help; all of them without one")
    sys.exit(main(parser.parse_args().targets))
