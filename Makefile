# make demo    see a hand-over: ZooKeeper, Redis, three nodes, a worker, and a kill -9
# make test    everything that is checked: lint, then all tiers of tests
# make bench   each fault of the leader, measured on this machine
# make clean   remove what these have made in this directory
#
# On Debian and Ubuntu each target installs the packages that it lacks, with sudo where that is needed.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test lint unit process zk deploy container bench clean

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

# Package, or package=command where any provider of the command will do.
SERVER_PACKAGES := zookeeper default-jre-headless=java redis-server=redis-server
LAN_PACKAGES := iproute2=ip nftables=nft procps=ps util-linux=setsid
CONTAINER_PACKAGES := docker.io=docker docker-compose=docker-compose debootstrap=debootstrap

# In CI, a tier without what it needs is a failure and not a skip.
export ZKBEAT_TEST_CONTAINERS ?= $(if $(CI),required,)

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: .venv/.demo
	@.ci/packages $(SERVER_PACKAGES)
	@.venv/bin/zkbeat demo

# Goes on after a tier that fails, so that one run says all there is to say; and fails then.
test: .venv/.dev
	@$(MAKE) --no-print-directory --keep-going lint unit process zk deploy container

lint: .venv/.dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

unit: .venv/.dev
	$(PYTEST) tests/unit

process: .venv/.dev
	@.ci/packages $(LAN_PACKAGES)
	$(PYTEST) tests/process

zk: .venv/.dev
	@.ci/packages $(SERVER_PACKAGES) $(LAN_PACKAGES)
	$(PYTEST) tests/zk

deploy: .venv/.dev
	@.ci/packages $(SERVER_PACKAGES) $(LAN_PACKAGES)
	$(PYTEST) -m 'not container' tests/deploy

container: .venv/.dev
	@.ci/packages $(CONTAINER_PACKAGES)
	.ci/with-containers $(PYTEST) -m container tests/container tests/deploy

bench: .venv/.dev
	@.ci/packages $(SERVER_PACKAGES) $(LAN_PACKAGES)
	$(PYTHON) -m tests.bench.faults

.venv/.demo: pyproject.toml
	@.ci/python >/dev/null 2>&1 || .ci/packages python3 python3-venv
	@.ci/venv -e '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml
	@.ci/python >/dev/null 2>&1 || .ci/packages python3 python3-venv
	@.ci/venv -e . --group dev
	@touch $@ .venv/.demo

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
