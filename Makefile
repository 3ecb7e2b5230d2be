# Every target sets up what it needs, once: `make demo` on a fresh machine is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench study readme model clean

demo: $(STAMP)
	$(BIN)/lmm-lens demo

test: $(STAMP)
	$(BIN)/python -m pytest -q --durations=5

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/types && mkdir -p build/types && cp -r lmm_lens build/types/ && cp -r adapters build/types/lmm_lens/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p lmm_lens

# Every table of tutorials/results.
study: $(STAMP)
	$(BIN)/python tutorials/study_shapes_llava.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.attention_tap
	$(BIN)/python -m benchmarks.interventions
	$(BIN)/python -m benchmarks.bridge
	$(BIN)/python -m benchmarks.envoy
	$(BIN)/python -m benchmarks.spans

# The table of families in the README, from the adapters themselves.
readme: $(STAMP)
	$(BIN)/python -m lmm_lens.support README.md

# Train the bundled model again, from its seeds (about 45 CPU minutes); see lmm_lens/shapes/README.md.
model: $(STAMP)
	$(BIN)/python -m lmm_lens.shapes.train

clean:
	rm -rf $(VENV) build dist *.egg-info lmm-lens-demo

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	# beside a CPU build of torch its operators do not load; tests take its transforms alone
	test -d $(VENV)/torchvision || $(BIN)/pip install -q --no-deps --target $(VENV)/torchvision torchvision==0.28.0
	touch $@
