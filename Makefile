.PHONY: setup test lint docs check

setup:
	pip install -e ".[test]"

test:
	pytest

lint:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

docs:
	python docs/generate.py

check: lint test
	python docs/generate.py --check
