# What a person does here, one target each; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
NB ?=
LAB_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=
STUDENT_ARGS ?=
BROWSER_ARGS ?=
FOLDER ?= reports
WORKERS ?= 2
VARIANT ?=
TORCH ?=
RANKS ?= 4
ALONE ?=
ZOO_ARGS ?=
NBVAL := -n $(WORKERS) --dist loadscope --nbval --nbval-cell-timeout=120 --nbval-sanitize-with tests/nbval_sanitize.cfg -p no:cacheprovider -o addopts= -o testpaths= -o verbosity_assertions=2
NOTEBOOKS = $(or $(NB:%=notebooks/%-*.ipynb),notebooks)

# Everything that pip, Jupyter, npm, matplotlib and torch would keep in the home folder stays in this checkout.
CACHE := $(CURDIR)/.cache
export PIP_CACHE_DIR := $(CACHE)/pip
export XDG_CACHE_HOME := $(CACHE)/xdg
export MPLCONFIGDIR := $(CACHE)/matplotlib
export IPYTHONDIR := $(CACHE)/ipython
export JUPYTER_CONFIG_DIR := $(CACHE)/jupyter/config
export JUPYTER_DATA_DIR := $(CACHE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CACHE)/jupyter/runtime
export JUPYTERLAB_SETTINGS_DIR := $(CACHE)/jupyter/settings
export JUPYTERLAB_WORKSPACES_DIR := $(CACHE)/jupyter/workspaces
export JUPYTER_PLATFORM_DIRS := 1
# JupyterLab asks npm, where there is one, for language servers.
export npm_config_cache := $(CACHE)/npm
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.DEFAULT_GOAL := help
.PHONY: help lab test lint types unit notebooks-test browser-test chromium notebooks student reports digests graders-test dist dist-test release-check lint-deploy image format book gpu bench test-elsewhere unit-elsewhere notebooks-elsewhere test-ranks test-torch test-zoo test-zoo-part test-alone clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-19s %s\n' "$$name" "$$text"; done

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gnewton needs Python 3.11 or newer, found " + sys.version.split()[0] + "; name another with: make PYTHON=/path/to/python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# IPython refuses a folder whose parent is missing; relative, since make takes no target with a space in its name.
.cache:
	@mkdir -p $@

# One stamp per set of extras: a second run installs nothing and starts at once.
$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | .cache $(BIN)/python
	@echo "Installing gnewton[$*] into $(VENV): 350 MB of downloads, 1.6 GB on disk and about two minutes with torch's CPU build."
	@echo "On Linux PyPI's torch is made for CUDA, several GB more. For the CPU build, stop here, write first:"
	@echo "  export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	$(PIP_INSTALL) --editable '.[$*]'
	@touch $@

lab: $(VENV)/.installed-lab  ## open the course in JupyterLab, on your own copy in learn/ (LAB_ARGS="--no-browser --port=8899")
	@$(BIN)/python -m gnewton lab learn $(LAB_ARGS)

test: $(VENV)/.installed-test lint types unit notebooks-test  ## run every check: linter, types, unit and law tests, doctests, notebooks

lint: $(VENV)/.installed-test  ## ruff: lint and format, notebooks too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test  ## mypy on the package
	$(BIN)/mypy

unit: $(VENV)/.installed-test  ## unit and law tests, doctests
	$(BIN)/pytest -n $(WORKERS)

# One thread each: two runners fill two cores, and more threads than cores made a network this small ten times slower.
unit unit-elsewhere notebooks-test notebooks notebooks-elsewhere: export OMP_NUM_THREADS := 1

notebooks-test: $(VENV)/.installed-test  ## run every notebook and compare with its saved outputs (NB="03 07" for some)
	$(BIN)/pytest $(NBVAL) $(NOTEBOOKS)

browser-test: $(VENV)/.installed-browser chromium book  ## the notebooks in JupyterLab and the book, in Chromium (BROWSER_ARGS="-k 02-summary")
	$(BIN)/pytest tests/browser -m "browser and not wheel" -n $(WORKERS) --dist loadfile $(BROWSER_ARGS)

chromium:  ## find a Chromium for browser-test, or install Debian's (as root)
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| { test "$$(id -u)" = 0 && command -v apt-get && apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium fonts-liberation; } \
	|| { echo "make browser-test needs Chromium: install it with your system's packages (Debian: sudo apt-get install chromium)"; exit 1; }

notebooks: $(VENV)/.installed-test  ## re-execute the notebooks and save clean outputs (NB=03 for one)
	$(BIN)/python tools/save_notebooks.py notebooks $(NB)

student: $(VENV)/.installed-lab  ## the notebooks without solutions and outputs, into student/ (STUDENT_ARGS="--format otter")
	@$(BIN)/python -m gnewton student student $(STUDENT_ARGS)

graders-test: $(VENV)/.installed-test $(VENV)/.installed-graders  ## release, submissions and marks, through otter-grader and nbgrader
	$(BIN)/pytest tests/course/test_graders.py -m graders

dist: $(VENV)/.installed-book $(VENV)/.installed-dist  ## the sdist and the wheel, with notebooks and book, into dist/
	rm -rf dist
	GNEWTON_BOOK=required $(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

release-check:  ## version, changelog, citation and tag agree
	$(PYTHON) tools/check_release.py

lint-deploy: $(VENV)/.installed-test $(VENV)/.installed-deploy  ## linters for workflows, image and citation
	$(BIN)/actionlint .github/workflows/*.yml
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/pytest tests/repository/test_deploy.py

image:  ## the course in a Docker image; needs a docker engine (after make dist: with the book)
	docker build --file deploy/Dockerfile --tag gnewton .

dist-test: $(VENV)/.installed-test $(VENV)/.installed-browser dist chromium  ## build twice: same bytes, the content; the wheel in an empty environment and in Chromium
	$(BIN)/pytest tests/repository/test_wheel.py -m wheel
	$(BIN)/pytest tests/browser/test_installed.py -m "browser and wheel"

reports: $(VENV)/.installed-lab  ## a class's reports as one table, reports.csv (FOLDER=where they lie)
	$(BIN)/python -m gnewton.teaching.collect $(FOLDER) > reports.csv

digests: $(VENV)/.installed-lab  ## after an experiment: what the package ships of results/
	$(BIN)/python tools/digest_results.py results gnewton/experiments/digests

format: $(VENV)/.installed-test  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

book: $(VENV)/.installed-book  ## build the web book into book/_build/html
	$(BIN)/sphinx-build -W -n --keep-going -q book book/_build/html
	@echo "The book: book/_build/html/index.html"

gpu: $(VENV)/.installed-test  ## everything that needs an accelerator: tests, agreement, notebooks, times; without one, the list of it
	$(BIN)/python -m benchmarks.gpu $(GPU_ARGS)

bench: $(VENV)/.installed-bench  ## what a summary costs, against peers: tables, figure (BENCH_ARGS="--quick")
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

test-elsewhere: unit-elsewhere notebooks-elsewhere  ## unit tests and notebooks in the arithmetic of other processors

unit-elsewhere: $(VENV)/.installed-test  ## the unit tests alone (VARIANT=sse, avx2 or threads; all three by default)
	$(BIN)/python tools/elsewhere.py $(or $(VARIANT),sse avx2 threads) -- -n $(WORKERS)

notebooks-elsewhere: $(VENV)/.installed-test  ## the notebooks alone (VARIANT=perturbed: their data, too; NB="03 07" for some)
	$(BIN)/python tools/elsewhere.py $(VARIANT) -- $(NBVAL) $(NOTEBOOKS)

test-ranks: $(VENV)/.installed-test  ## the laws of several processes, with four of them (RANKS=3)
	GNEWTON_RANKS=$(RANKS) $(BIN)/pytest tests/test_ranks.py tests/test_sharded.py tests/stacks/test_launchers.py

test-torch: $(if $(TORCH),.cache/torch-$(TORCH).txt)  ## unit tests and notebooks with another torch, in a venv of its own (TORCH=2.9.1)
	@test -n "$(TORCH)" || { echo "expected a version of torch, got none: make test-torch TORCH=2.9.1"; exit 1; }
	$(MAKE) VENV=.venv-torch-$(TORCH) CONSTRAINTS=$< unit notebooks-test

# A torch pins its sympy, and each torchvision goes with one torch.
.cache/torch-%.txt: constraints.txt | .cache
	@{ grep -vE '^(torch|torchvision|sympy)==' $<; echo 'torch==$*'; } > $@

# One thread each, and nothing is asked of a hub: every model is made from a configuration, with random weights.
test-zoo test-zoo-part: export OMP_NUM_THREADS := 1
test-zoo test-zoo-part: export HF_HUB_OFFLINE := 1
test-zoo: $(VENV)/.installed-zoo  ## models and loops of other libraries; write VENV=.venv-zoo: torchvision would break them (ZOO_ARGS="-k peft")
	$(BIN)/pytest tests/models/test_architectures.py tests/stacks -m "zoo or not zoo" -n $(WORKERS) $(ZOO_ARGS)

test-zoo-part: $(VENV)/.installed-zoo-part  ## those of the libraries that install in half a minute, as CI runs them (VENV=.venv-zoo, too)
	$(BIN)/pytest tests/models/test_architectures.py tests/stacks -m zoo -n $(WORKERS) $(ZOO_ARGS)

test-alone:  ## each target as the first command in a fresh clone, an hour (ALONE="lint book" for some)
	$(PYTHON) tools/alone.py $(ALONE)

clean:  ## remove .venv, caches and the built book; learn/ stays
	rm -rf .venv .venv-torch-* .cache .pytest_cache .mypy_cache .ruff_cache book/_build book/notebooks
