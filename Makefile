.PHONY: style check types test docs api

PYTHON ?= python

style:  ## format the code and fix what can be fixed
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check:  ## what CI checks besides the tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

test:  ## the default suite, minutes on two cores
	$(PYTHON) -m pytest

api:
	mkdir -p build/api/classquery
	ln -sfn $(CURDIR)/modeling_classquery/* $(CURDIR)/data $(CURDIR)/configuration build/api/classquery/

types: api  ## what users import, and a script of theirs, by mypy
	$(PYTHON) -m mypy

docs: api  ## the site, in build/site; a dead link or a name that is not there is an error
	$(PYTHON) -m mkdocs build --strict --site-dir build/site
