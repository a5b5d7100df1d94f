# Wraps the plain commands: `pip install -e ".[dev]" -c constraints.txt`, `pytest`, `python scripts/train.py ...`.

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
EXTRAS ?= dev # of pyproject.toml; EXTRAS=dev,sims also installs the simulators
POLICY ?= runs/toy_pick/latest/policy

.PHONY: train test lint notebook docs playground

train: $(INSTALLED)
	$(PYTHON) scripts/train.py experiment=toy_pick

test: $(INSTALLED) # two tests at a time, those of a file together, in their order, since they share what was made for them
	$(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

docs: $(INSTALLED) # site/index.html; any warning is an error
	@$(PYTHON) -m mkdocs --version >/dev/null 2>&1 || $(MAKE) --always-make EXTRAS=dev,docs $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build

lint: $(INSTALLED)
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check

notebook: $(INSTALLED) # docs/autograd.ipynb and docs/ko/autograd.ipynb
	$(PYTHON) docs/notebook.py

playground: $(INSTALLED) # with the policy POLICY, into docs/playground/, for any static file server
	$(PYTHON) docs/playground/build.py "$(POLICY)"

# Installed anew whenever the requirements change. uv is used when it is there; an unsuitable python3 is refused early.
$(INSTALLED): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
		set -ex; \
		test -x $(PYTHON) || uv venv --quiet --python ">=3.11,<3.14" .venv; \
		uv pip install --quiet --python $(PYTHON) -e ".[$(strip $(EXTRAS))]" -c constraints.txt; \
	else \
		set -ex; \
		python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "vla-mini needs Python 3.11 to 3.13")'; \
		test -x $(PYTHON) || python3 -m venv .venv; \
		$(PYTHON) -m pip install --quiet -e ".[$(strip $(EXTRAS))]" -c constraints.txt; \
	fi
	@touch $@
