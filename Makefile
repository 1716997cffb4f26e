# make install     .venv with what is pinned for this machine, and .venv/bin/rlsys
# make quickstart  install, then the whole recipe on this machine (about 6 minutes), ending with a table
# make test        install with test tools, then lint, types and tests (about 25 minutes on two cores)
# make faults      the published fault matrix on real processes (at most 90 minutes); docs/faults.md is its table
# make soak        half an hour of training under random kills
.PHONY: install install-test quickstart test faults soak lint lock help

help:
	@grep '^# make' Makefile | cut -c3-

install:
	@requirements/install.sh run

install-test: install
	@requirements/install.sh test

quickstart: install
	.venv/bin/rlsys run configs/quickstart.toml $(ARGS)

lint: install-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright --level error

# Two at a time, but for those that time what they break.
test: lint
	.venv/bin/python -m pytest -n 2 -q tests/unit tests/real_data $(ARGS)
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q tests/integration --durations=20 \
	  -m "not alone and not faults and not soak" $(ARGS)
	.venv/bin/python -m pytest -q tests/integration --durations=20 -m "alone and not faults and not soak" $(ARGS)

faults: install-test
	.venv/bin/python -m pytest -q -m faults tests/integration $(ARGS)

soak: install-test
	.venv/bin/python -m pytest -q -s -m soak tests/integration $(ARGS)

lock: install-test
	.venv/bin/python requirements/lock.py
