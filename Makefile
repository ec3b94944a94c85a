# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON      ?= python3
ACCELERATOR ?= cpu
BIN          = .venv/bin

.PHONY: install demo demo-text test bench mutate clean

# Installs packages into .venv. pip says nothing for a minute while it unpacks, so the loop counts what is there.
define pip_install
	@echo "pip install $(strip $(1)): a minute or more the first time"
	@while sleep 8 >&- 2>&- && kill -0 $$$$ 2>/dev/null; do \
	  echo "still installing: $$(ls -d .venv/lib/python*/site-packages/*.dist-info | wc -l) packages are in place"; \
	done & \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(1); status=$$?; kill $$!; exit $$status
endef

# The environment is made once, and again when the requirements or the accelerator change.
STAMP = .venv/.installed-$(ACCELERATOR)
install: $(STAMP)

$(STAMP): requirements.txt
	@case "$(ACCELERATOR)" in cpu|cuda|tpu) ;; *) echo "ACCELERATOR must be cpu, cuda or tpu, got '$(ACCELERATOR)'" >&2; exit 2;; esac
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"vf needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}: name another with PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(call pip_install,-r requirements.txt $(if $(filter-out cpu,$(ACCELERATOR)),'jax[$(ACCELERATOR)]'))
	rm -f .venv/.installed-*
	touch $@

.venv/.tested: $(STAMP) requirements-dev.txt
	$(call pip_install,-r requirements-dev.txt)
	touch $@

# Trains on the built-in sprites, samples, evaluates, in eight to eleven minutes on two cores: open runs/demo/index.html afterwards.
demo: $(STAMP)
	$(BIN)/python -m vf.main --config=configs/demo.py --workdir=runs/demo

# Likewise from captions: a small CLIP, then generators that read its texts, then clips of prompts.
demo-text: $(STAMP)
	$(BIN)/python -m vf.main --config=configs/demo_text.py --workdir=runs/demo-text/clip --mode=clip
	$(BIN)/python -m vf.main --config=configs/demo_text.py --workdir=runs/demo-text/video
	$(BIN)/python -m vf.main --config=configs/demo_text.py --workdir=runs/demo-text/video --mode=sample \
	  --config.sample.prompts="a red triangle moves left over white"

test: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The tables of RESULTS.md that need no run.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.gaussian_video
	$(BIN)/python -m benchmarks.counts

# Mutates the core, one mutation at a time, and lists the mutants that no test kills: runs/mutants/mutants.md.
MUTANTS ?= 210
CORES   ?= 2
mutate: .venv/.mutating
	$(BIN)/python -m benchmarks.mutate --mutants=$(MUTANTS) --cores=$(CORES)

.venv/.mutating: .venv/.tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "cosmic-ray>=8.7,<9"
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
