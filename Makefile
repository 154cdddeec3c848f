.PHONY: style check test docs

PYTHON ?= python

style:  ## format the code and fix what can be fixed
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check:  ## what CI checks besides the tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

test:  ## the default suite, minutes on two cores
	$(PYTHON) -m pytest

docs:  ## the site, in build/site; a dead link or a name that is not there is an error
	mkdir -p build/api/classquery
	ln -sfn $(CURDIR)/modeling_classquery/* $(CURDIR)/data $(CURDIR)/configuration build/api/classquery/
	$(PYTHON) -m mkdocs build --strict --site-dir build/site
