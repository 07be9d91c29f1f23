# make demo    see a hand-over: ZooKeeper, Redis, three nodes, a worker, and a kill -9
# make test    everything that is checked: lint, then all tiers of tests
# make sim     more of the simulation: make sim SEEDS=1000000 FIRST=0, or SEED=7 to replay one
# make chaos   more faults on the real thing: make chaos ROUNDS=500 SEED=1
# make bench   beside its peers, on this machine; bench-faults, -launcher, -scale and -schedule measure the rest
# make clean   remove what these have made in this directory
#
# On Debian and Ubuntu each target installs the packages that it lacks, with sudo where that is needed.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test lint unit sim process zk launcher schedule deploy chaos container clean
.PHONY: bench bench-faults bench-launcher bench-scale bench-schedule

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# Tests that mostly wait for processes: several files at a time.
WAITING := -n 3 --dist loadfile

# Package, or package=command where any provider of the command will do.
SERVER_PACKAGES := zookeeper default-jre-headless=java redis-server=redis-server
BROKER_PACKAGES := redis-server=redis-server rabbitmq-server
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
	@$(MAKE) --no-print-directory --keep-going lint unit sim process zk launcher schedule deploy chaos container

lint: .venv/.dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

unit: .venv/.dev
	$(PYTEST) tests/unit

# With SEEDS a longer walk, with SEED that one again; without, what belongs to `make test`.
sim: .venv/.dev
ifdef SEED
	$(PYTHON) -m tests.sim --seed $(SEED)
else ifdef SEEDS
	$(PYTHON) -m tests.sim --seeds $(SEEDS) --first $(or $(FIRST),0)
else
	$(PYTEST) tests/sim
endif

process: .venv/.dev
	@.ci/packages $(LAN_PACKAGES)
	$(PYTEST) tests/process

zk: .venv/.dev
	@.ci/packages $(SERVER_PACKAGES) $(LAN_PACKAGES)
	$(PYTEST) $(WAITING) tests/zk

launcher: .venv/.dev
	@.ci/packages $(SERVER_PACKAGES) $(BROKER_PACKAGES) $(LAN_PACKAGES)
	$(PYTEST) $(WAITING) tests/launcher

schedule: .venv/.dev
	@.ci/packages $(SERVER_PACKAGES) $(BROKER_PACKAGES) $(LAN_PACKAGES)
	$(PYTEST) $(WAITING) tests/schedule tests/worker

deploy: .venv/.dev
	@.ci/packages $(SERVER_PACKAGES) $(LAN_PACKAGES)
	$(PYTEST) $(WAITING) -m 'not container' tests/deploy

# With ROUNDS a longer run; without, what belongs to `make test`.
chaos: .venv/.dev
	@.ci/packages $(SERVER_PACKAGES) $(LAN_PACKAGES) gcc=cc libc6-dev
ifdef ROUNDS
	$(PYTHON) -m tests.chaos run --rounds $(ROUNDS) --seed $(or $(SEED),1) --history chaos.jsonl
else
	$(PYTEST) -m 'not container' tests/chaos
endif

container: .venv/.dev
	@.ci/packages $(CONTAINER_PACKAGES)
	.ci/with-containers $(PYTEST) -m container tests/container tests/deploy tests/chaos

bench: .venv/.bench
	@.ci/packages $(SERVER_PACKAGES) $(LAN_PACKAGES) etcd-server=etcd etcd-client=etcdctl
	$(PYTHON) -m tests.bench.peers --json docs/peers.json

bench-faults bench-launcher bench-scale bench-schedule: .venv/.bench
	@.ci/packages $(SERVER_PACKAGES) $(LAN_PACKAGES)
	$(PYTHON) -m tests.bench.$(@:bench-%=%)

.venv/.demo: pyproject.toml
	@.ci/python >/dev/null 2>&1 || .ci/packages python3 python3-venv
	@.ci/venv -e '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml
	@.ci/python >/dev/null 2>&1 || .ci/packages python3 python3-venv
	@.ci/venv -e . --group dev
	@touch $@ .venv/.demo

.venv/.bench: pyproject.toml
	@.ci/python >/dev/null 2>&1 || .ci/packages python3 python3-venv
	@.ci/venv -e . --group bench
	@touch $@ .venv/.dev .venv/.demo

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
