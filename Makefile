# Two commands are enough on a bare machine with Python 3.11+, pip, git and make:
#   make demo    starts the service on a real history, checks the result, prints the next commands
#   make test    runs the tests, in a few minutes
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test slow named-mutants mutants coverage lint audit docs fuzz install clean lock

demo: install
	$(BIN)/foldlog demo

test: install
	$(BIN)/pytest -n auto -m "not slow and not soak"

# The long variants of tests.
slow: install
	$(BIN)/pytest -n auto -m "slow and not soak"

# Faults that once survived the tests. Each is put into a copy of the code, and a test must fail.
named-mutants: install
	$(BIN)/python tests/mutation/named.py

# Changes one place of the code at a time, and expects that a test fails: a few mutants of the modules
# that decide what is proven and erased. tests/mutation/run.py mutates any module.
MUTANTS ?= domain/proofs domain/audit domain/erasure
mutants: named-mutants
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cosmic-ray==8.7.0
	$(BIN)/python tests/mutation/run.py $(MUTANTS) --seed 16 --sample 4

# Lines and branches that the whole suite runs, in the service's processes too.
# Writes build/coverage/report.txt and build/coverage/index.html.
coverage: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check coverage==7.17.5
	rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage run -m pytest -n auto; true
	COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage combine --quiet build/coverage
	COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage html --quiet -d build/coverage
	COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage report | tee build/coverage/report.txt

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities among the versions of constraints.txt. Passes with a message without network.
audit:
	$(PYTHON) .ci/audit.py

# Builds the site of the documentation into build/site. Each warning is an error.
docs: $(VENV)/.docs-installed
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/build.py

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# Fuzzes the decoder and the fold, guided by coverage. Writes each failing input to build/crash-*.
FUZZ_SECONDS ?= 60
fuzz: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris==3.0.0
	mkdir -p build/fuzz-corpus
	$(BIN)/python fuzz/fuzz_changesets.py -max_total_time=$(FUZZ_SECONDS) -dict=fuzz/words.dict \
	  -max_len=4096 -artifact_prefix=build/ build/fuzz-corpus fuzz/corpus

install: $(VENV)/.installed

# Installs the versions of constraints.txt, so that a new release of a package breaks no build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Foldlog needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,test]'
	touch $@

# Rewrites constraints.txt with the newest versions that pyproject.toml allows.
lock:
	rm -rf build/lock-venv
	$(PYTHON) -m venv build/lock-venv
	build/lock-venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[server,test,docs]'
	( echo '# The versions that `make` installs. Written by `make lock`.'; \
	  build/lock-venv/bin/python -m pip freeze --exclude-editable ) > constraints.txt
	rm -rf build/lock-venv

clean:
	rm -rf $(VENV) build dist *.egg-info demo-data
