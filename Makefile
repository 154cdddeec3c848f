.PHONY: style check test

PYTHON ?= python

style:  ## format the code and fix what can be fixed
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check:  ## what CI checks besides the tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

test:  ## the default suite, minutes on two cores
	$(PYTHON) -m pytest
