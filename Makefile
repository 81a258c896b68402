# Two commands do everything on a bare machine with Python 3.11+, pip, git and make:
#   make demo    the service on a real history, everything checked, what to type next
#   make test    all tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test quick lint audit docs fuzz install clean lock

demo: install
	$(BIN)/foldlog demo

test: install
	$(BIN)/pytest -n auto

# Without what is slow by its nature.
quick: install
	$(BIN)/pytest -n auto -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities among the versions of constraints.txt; passes, and says so, without network.
audit:
	$(PYTHON) .ci/audit.py

# Builds the site of the documentation into build/site. Each warning is an error.
docs: $(VENV)/.docs-installed
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/build.py

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# Coverage-guided, of the decoder and the fold. What it finds is written to build/crash-*.
FUZZ_SECONDS ?= 60
fuzz: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris==3.0.0
	mkdir -p build/fuzz-corpus
	$(BIN)/python fuzz/fuzz_changesets.py -max_total_time=$(FUZZ_SECONDS) -dict=fuzz/words.dict \
	  -max_len=4096 -artifact_prefix=build/ build/fuzz-corpus fuzz/corpus

install: $(VENV)/.installed

# Versions are those of constraints.txt, so that tomorrow's release of anything breaks nobody.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Foldlog needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,test]'
	touch $@

# Writes constraints.txt anew from what pyproject.toml allows today.
lock:
	rm -rf build/lock-venv
	$(PYTHON) -m venv build/lock-venv
	build/lock-venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[server,test,docs]'
	( echo '# The versions that `make` installs. Written by `make lock`.'; \
	  build/lock-venv/bin/python -m pip freeze --exclude-editable ) > constraints.txt
	rm -rf build/lock-venv

clean:
	rm -rf $(VENV) build dist *.egg-info demo-data
