# Every target sets up what it needs, once: `make demo` on a fresh machine is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BROWSER := $(VENV)/.browser
ROOT := $(shell test "$$(id -u)" = 0 || echo sudo)

.PHONY: demo test lint bench study notebooks docs readme model clean

demo: $(STAMP)
	$(BIN)/lmm-lens demo

test: $(STAMP) $(BROWSER)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=5

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/types && mkdir -p build/types && cp -rp lmm_lens benchmarks training build/types/ && cp -rp adapters build/types/lmm_lens/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p lmm_lens -p training -p benchmarks

# Run every notebook of tutorials/ top to bottom, and keep its outputs.
notebooks: $(STAMP)
	$(BIN)/python tutorials/run.py

# The site, in build/site.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict

# Every table of tutorials/results.
study: $(STAMP)
	$(BIN)/python tutorials/study_shapes_llava.py

bench: $(STAMP) $(BROWSER)
	$(BIN)/python -m benchmarks.attention_tap
	$(BIN)/python -m benchmarks.interventions
	$(BIN)/python -m benchmarks.bridge
	$(BIN)/python -m benchmarks.envoy
	$(BIN)/python -m benchmarks.spans
	$(BIN)/python -m benchmarks.sweeps
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.viewer

# The table of families in the README, from the adapters themselves.
readme: $(STAMP)
	$(BIN)/python -m lmm_lens.cli.support README.md

# Train the bundled model again, from its seeds (about 45 CPU minutes); see lmm_lens/bundled/shapes/README.md.
model: $(STAMP)
	$(BIN)/python -m training.shapes_llava.train

clean:
	rm -rf $(VENV) build dist *.egg-info lmm-lens-demo lmm-lens-sweep

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	# beside a CPU build of torch its operators do not load; tests take its transforms alone
	test -d $(VENV)/torchvision || $(BIN)/pip install -q --no-deps --target $(VENV)/torchvision torchvision==0.28.0
	touch $@

# The tests of pages need a browser, and this is Debian's and Ubuntu's name for one.
$(BROWSER): | $(STAMP)
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
		($(ROOT) apt-get update -qq && $(ROOT) apt-get install -y -qq chromium)
	touch $@
