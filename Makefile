# Commands for a machine with nothing but Python, git and make:
#
#     make walkthrough      run the notebooks in order and write them as web pages     NB=03 runs one
#     make test             run every test, and compare every notebook with a new run
#
# Each first sets up .venv from requirements.txt, once. "make lab" opens the notebooks themselves.

PYTHON ?= python3
BIN     = .venv/bin
NB     ?=
EXTRA  ?=

help:
	@echo "make walkthrough    run all notebooks and write them as web pages to build/"
	@echo "                    NB=03 runs one, NB=\"03 05\" two"
	@echo "make lab            open the notebooks in JupyterLab"
	@echo "make test           every test, and every notebook against its stored outputs"
	@echo "                    EXTRA=\"pytorchcv grad-cam pycocotools safetensors\" also installs the packages that some"
	@echo "                    tests compare with; without them these tests are skipped"
	@echo "make check          ruff and the quick tests: a minute or so, before each commit"
	@echo "PYTHON=python3.12   for any of these: the Python of .venv, 3.10 or newer (remove .venv to change it)"

walkthrough: .venv/.tools
	$(BIN)/python -m scnet_minimal.lab.walkthrough $(NB)

lab: .venv/.ready
	$(BIN)/python -m jupyterlab notebooks

# Tests run in two processes with one thread each; a file, and so a notebook, stays within one of them. The longest come
# first, so that both processes end at the same time.
test: .venv/.tools
	@if [ -n "$(EXTRA)" ]; then $(BIN)/python -m pip install --quiet $(EXTRA); fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --nbval notebooks tests

check: .venv/.tools
	$(BIN)/python -m ruff check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --quiet -m "not slow" tests

# A stamp is written last, so that a set-up that was interrupted does not count, and a changed list of packages asks for
# a new one. --clear starts from an empty folder: no half-installed package, nothing of another Python.
.venv/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed, and $(PYTHON) is older: name another, as in make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make a virtual environment: on Debian or Ubuntu, apt install python3-venv"; exit 1; }
	@echo "Setting up .venv: once, a few minutes, a few GB (PyTorch)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

.venv/.tools: .venv/.ready
	$(BIN)/python -m pip install --quiet "pytest>=8.4" pytest-xdist ruff latex2mathml
	@touch $@

.PHONY: help walkthrough lab test check
