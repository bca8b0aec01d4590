# `make demo` and `make test` need nothing but Python 3.9 or newer with venv.
# PADDLE=2.6.2 runs either on that Paddle, in an environment of its own.
PYTHON ?= python3
PADDLE ?=
VENV := .venv$(if $(PADDLE),-$(PADDLE))
RUN := $(VENV)/bin/python
# Of Paddle, among the extras that are installed.
DISTRIBUTION := cpu,
REQUIREMENTS := $(if $(PADDLE),paddlepaddle==$(PADDLE) $(if $(filter 2.%,$(PADDLE)),'numpy<2' setuptools))

# Among processes, of which one that is done takes tests from another; -rs: why tests are skipped, at
# the end.
SHARED := --numprocesses auto --maxprocesses 4 --dist worksteal -rs

# What needs neither a compiler nor other processes, and little time.
QUICK := tests/balancing tests/network tests/training/test_history.py tests/training/test_live.py \
	tests/test_arguments.py tests/test_inputs.py tests/test_layers.py

.PHONY: demo rotograd-toy kovasznay test test-quick test-all test-ppsci test-deepxde lint docs bench soak clean

demo: $(VENV)/operators
	$(RUN) examples/pinn_laplace/demo.py

rotograd-toy: $(VENV)/installed-plot
	$(RUN) examples/rotograd_toy/rotograd_toy.py

kovasznay: $(VENV)/operators
	$(RUN) examples/pinn_kovasznay/pinn_kovasznay.py

test: $(VENV)/installed-test
	@echo 'All but the slow tests: about 10 minutes on two cores. `make test-quick` takes one.'
	$(RUN) -m pytest -m 'not slow' $(SHARED)

test-quick: $(VENV)/installed-test
	@echo 'The tests of balancing, networks and histories: about a minute on two cores.'
	$(RUN) -m pytest -m 'not slow' -k 'not cpp and not processes' \
		$(SHARED) --ignore tests/balancing/test_ranks.py $(QUICK)

# The slow ones too: processes that are killed, thousands of damaged files, long runs.
test-all: $(VENV)/installed-test
	$(RUN) -m pytest $(SHARED)

# With PaddleScience, in an environment of its own.
test-ppsci:
	$(MAKE) VENV=.venv-ppsci .venv-ppsci/installed-ppsci-test
	.venv-ppsci/bin/python -m pytest $(SHARED) tests/ppsci tests/network/test_shared_layer.py \
		tests/training/test_visualdl.py tests/examples/test_ppsci.py \
		tests/benchmarks/test_ppsci_examples.py tests/benchmarks/test_solver_derivatives.py \
		tests/benchmarks/test_time_to_error_peers.py \
		tests/benchmarks/test_accuracy.py::test_soap_makes_runs_of_its_own paddlescience_gradnorm/ppsci
	.venv-ppsci/bin/python -m pytest tests/test_readme.py tests/test_main.py \
		-k 'ppsci or migrating or visualdl or tensorboard'

# With DeepXDE on Paddle, in an environment of its own.
test-deepxde: export DDE_BACKEND := paddle
test-deepxde:
	$(MAKE) VENV=.venv-deepxde .venv-deepxde/installed-deepxde-test
	.venv-deepxde/bin/python -m pytest $(SHARED) tests/test_deepxde.py tests/examples/test_deepxde.py \
		tests/benchmarks/test_deepxde_examples.py tests/benchmarks/test_time_to_error_peers.py \
		paddlescience_gradnorm/deepxde.py
	.venv-deepxde/bin/python -m pytest tests/test_readme.py -k deepxde

# A million steps, and 20,000 through each adapter: whether memory and the time of a step stay the
# same. It takes about an hour on an idle core, and goes on where Ctrl-C has stopped it. Not in CI.
soak: export OMP_NUM_THREADS := 1
soak: $(VENV)/installed-test
	$(RUN) benchmarks/soak.py
	$(MAKE) VENV=.venv-ppsci .venv-ppsci/installed-ppsci-test
	.venv-ppsci/bin/python benchmarks/soak.py solver
	$(MAKE) VENV=.venv-deepxde .venv-deepxde/installed-deepxde-test
	DDE_BACKEND=paddle .venv-deepxde/bin/python benchmarks/soak.py deepxde

# PEERS=path/to/python adds PyTorch and JAX from that environment: see benchmarks/README.md.
bench: $(VENV)/installed-plot
	$(RUN) benchmarks/step_cost.py $(if $(PEERS),--peers-python $(PEERS))

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy --config-file tests/typing/mypy.ini tests/typing/user_program.py

# The site, in site/index.html; warnings are errors. In an environment of its own, without Paddle.
docs:
	$(MAKE) VENV=.venv-docs DISTRIBUTION= .venv-docs/installed-docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

$(VENV)/installed-%: setup.py pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[$(DISTRIBUTION)$*]' $(REQUIREMENTS)
	touch $@

# Where they cannot be built, it says why, and all works without them.
$(VENV)/operators: $(VENV)/installed-plot
	@echo 'Operators in C++ for this machine are compiled once, in about 25 s.'
	@$(RUN) -W ignore -m paddlescience_gradnorm.runtime --build --repetitions 0 >/dev/null || true
	touch $@

clean:
	rm -rf .venv .venv-* outputs site
