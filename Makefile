# Needs Python 3.10 or later, make and the package index; the virtual environment is made here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Not everything that the tests compare with comes from the package index.
PROGRAMS := ip apache2 nginx haproxy caddy envoy traefik chromium curl docker-registry openssl litmus prometheus promtool redis-server skopeo wrk

.PHONY: serve test test-all coverage soak applications recipes lint docs links dist bench clean

serve: $(VENV)/.runtime
	@$(BIN)/python -m pyramid_threaded_proxy.demo development.ini

# TESTS=tests/http runs a part of it.
test: $(VENV)/.testing
	@for program in $(PROGRAMS); do \
	  PATH="$$PATH:/usr/sbin:$(BIN)" command -v $$program >/dev/null || echo "left out: the tests with $$program, which is not installed"; \
	done
	$(BIN)/python -X dev -m pytest $(TESTS)

# On each supported Python that is found, each with an environment of its own, .venv-3.*
test-all:
	.ci/test-all $(TESTS)

# The suite, and which lines and branches of the package it runs; processes that tests start do not count.
coverage: $(VENV)/.testing
	$(BIN)/python -X dev -m pytest --cov --cov-report=term $(TESTS)

# Exchanges of 40 kinds by two users, every body and every count compared; ten minutes. COUNT=10000 takes one.
soak: $(VENV)/.testing
	$(BIN)/python -X dev -m tests.support.soak $(or $(COUNT),100000)

lint: $(VENV)/.testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes the pages that are made from the code, and builds the site of all pages in docs/_build/html; warnings are errors.
docs: $(VENV)/.docs
	$(BIN)/python -m pyramid_threaded_proxy.settings > docs/settings.md.new
	mv docs/settings.md.new docs/settings.md
	$(BIN)/python -m pyramid_threaded_proxy.engines > docs/engine-table.md.new
	mv docs/engine-table.md.new docs/engine-table.md
	$(BIN)/python -m docs.tools.api > docs/api.md.new
	mv docs/api.md.new docs/api.md
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html

# Follows each link of the site that leads outside; needs a network. What it found is in docs/_build/links/output.txt.
links: $(VENV)/.docs
	$(BIN)/sphinx-build -q -b linkcheck docs docs/_build/links

# Whole applications around it, under pserve. They are part of `make test` where the extra is installed; devpi-server, which
# is large, is installed here alone.
applications: $(VENV)/.heavy_applications
	CI=true HEAVY=true $(BIN)/python -X dev -m pytest tests/applications tests/site/test_script_name.py

# The programs of docs/recipes.md with their clients. Those of PyPI are large, and installed here alone; all that is named
# here is Debian's. novnc and tigervnc-standalone-server are asked for here alone.
recipes: $(VENV)/.recipes
	@for program in chromium docker-registry git litmus prometheus skopeo websockify Xtigervnc; do \
	  PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || { echo "recipes needs $$program"; exit 1; }; \
	done
	CI=true RECIPES=true $(BIN)/python -X dev -m pytest tests/recipes

# Wheel and sdist in dist/, checked; the wheel is installed into an empty environment of each supported Python that is found.
dist: $(VENV)/.release
	rm -rf build dist
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	.ci/try-wheel dist/*.whl

# QUICK=1 does less of the same, in under five minutes.
bench: $(VENV)/.benchmarks
	@for program in nginx wrk; do \
	  PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || { echo "bench needs $$program"; exit 1; }; \
	done
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) .venv-3.* docs/_build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	@echo "installing the package and what it needs into $(VENV)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.testing: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[testing]'
	touch $@ $(VENV)/.runtime

$(VENV)/.applications: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --editable '.[applications]'
	touch $@

# What the page of other add-ons for Pyramid names: the test of its application is left out where it is missing.
$(VENV)/.addons: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --editable '.[addons]'
	touch $@

# Caddy, Envoy and Traefik, 113 MB: the tests with them are left out where they are missing.
$(VENV)/.engines: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --editable '.[engines]'
	touch $@

$(VENV)/.heavy_applications: $(VENV)/.applications
	$(BIN)/python -m pip install --quiet --editable '.[heavy-applications]'
	touch $@

$(VENV)/.recipes: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --editable '.[recipes]'
	touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/.runtime

$(VENV)/.release: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	touch $@ $(VENV)/.runtime

$(VENV)/.benchmarks: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[benchmarks]'
	touch $@ $(VENV)/.runtime
