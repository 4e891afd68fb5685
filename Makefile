# make install       .venv with the versions of requirements.lock (all other targets do it first)
# make quickstart    the main job, end to end, 15 minutes on 2 cores; SHORT=1: the same steps in 4 minutes
# make tests         the tests: no root, no network
# make tests_integ   the user's own commands and real components (Chromium, SLURM, ...): root and apt
# make soak          the long tests, by hand
# make linter        ruff and mypy
# make docs          pages of the API in build/docs

PYTHON_VENV := .venv/bin/python
PYTEST := OMP_NUM_THREADS=1 $(PYTHON_VENV) -m pytest
UV := .venv/bin/uv pip install --quiet --python $(PYTHON_VENV)

.PHONY: install quickstart tests tests_integ soak linter docs clean

install:
	@scripts/install.sh

quickstart: install
	$(PYTHON_VENV) scripts/quickstart.py $(if $(filter-out 0,$(SHORT)),--short)

tests: install
	$(PYTEST) -n 2 --timeout 300 -m 'not integ and not soak' tests

tests_integ: install
	$(UV) playwright==1.65.2 transformers==5.23.0
	$(PYTEST) -n 2 --dist loadfile --timeout 900 -m 'integ and not soak' tests

soak: install
	$(UV) playwright==1.65.2
	$(PYTEST) -s -m soak tests

linter: install
	$(PYTHON_VENV) -m ruff check .
	$(PYTHON_VENV) -m mypy audiocraft

docs: install
	$(UV) pdoc==16.0.0
	rm -rf build/docs
	$(PYTHON_VENV) -m pdoc --docformat google -o build/docs audiocraft

clean:
	rm -rf build dist *.egg-info
