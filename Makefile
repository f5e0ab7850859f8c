# Two commands for a machine with nothing but Python, git and make:
#
#     make walkthrough      run the notebooks in order and write them as pages        NB=03 runs one
#     make test             run every test, and compare every notebook with a new run
#
# Each first sets up .venv from requirements.txt, once. "make lab" opens the notebooks themselves.

PYTHON ?= python3
BIN     = .venv/bin
NB     ?=
EXTRA  ?=

help:
	@echo "make walkthrough    run the notebooks in order, write them as pages to build/, show what was found"
	@echo "                    NB=03 runs one, NB=\"03 05\" two"
	@echo "make test           every test, and every notebook against its stored outputs"
	@echo "                    EXTRA=\"pytorchcv grad-cam pycocotools\" also installs what some tests compare with;"
	@echo "                    without it they are skipped"
	@echo "make lab            open the notebooks in JupyterLab"
	@echo "PYTHON=python3.12   for any of these: the Python of .venv, 3.10 or newer (remove .venv to change it)"

walkthrough: .venv/.ready
	$(BIN)/python -m scnet_minimal.lab.walkthrough $(NB)

test: .venv/.ready
	@if [ -n "$(EXTRA)" ]; then $(BIN)/python -m pip install $(EXTRA); fi
	$(BIN)/python -m pytest --nbval tests notebooks

lab: .venv/.ready
	$(BIN)/python -m jupyterlab notebooks

# The stamp is written last, so a set-up that was interrupted does not count, and a changed requirements.txt asks for
# a new one. --clear starts from an empty folder: no half-installed package, nothing of another Python.
.venv/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed, and $(PYTHON) is not: name one, as in make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make a virtual environment: on Debian or Ubuntu, apt install python3-venv"; exit 1; }
	@echo "Setting up .venv: once, some minutes, a few GB (PyTorch)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

.PHONY: help walkthrough test lab
