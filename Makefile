# Every target sets up what it needs. CI runs `make test` and nothing else.

# The acceptance cluster has a name of its own: a playground that somebody has running is left alone.
export PGCM_CLUSTER ?= pgcm-test
DEBIAN ?= trixie
# The fault campaign: how many rounds, from which seed, in which replication mode. Also: FAULTS="name …",
# LENGTH=30m, BROKEN=name of a patch in tests/faults/broken.
ROUNDS ?= 60
SEED ?= 1
MODE ?= sync
# Interruptions: ROWS="name …" of those on a cluster, BROKEN=name of a patch in tests/interruptions/broken.
export ROUNDS SEED MODE FAULTS LENGTH BROKEN ROWS
# Every shell file of the checkout, by its first line or by what it tells shellcheck.
SCRIPTS := $(shell git ls-files | xargs -r grep -lE '^(\#!.*\b(ba)?sh\b|\# shellcheck shell=)' 2>/dev/null)
# Tests that start real etcd, PgBouncer and Postgres processes.
INTEGRATION := etcd etcd_access lock postgres pgbouncer pooler_checks publish mover history with_lock status blockers checks proxy reload \
  failover admission registrations growth latecomers web
BINARIES ?= $(INTEGRATION) agent
# The resource agent's tests wait most of the time: for servers, for monitors, for limits.
AGENT_THREADS := RUST_TEST_THREADS=5
# What of them depends on the version of Postgres.
VERSION_TESTS ?= conformance matrix rejoin slots switchover unstartable
# What of that runs on Debian 12 as well: its Postgres lies between the versions below, its tools are older.
OLDER_TESTS := conformance rejoin switchover
# What `make test` takes of the interruption matrix, which takes twenty minutes: each way, and each step that holds clients.
CELLS := terminate@pause interrupt@paused-all hang-up@moving kill@paused-some kill@moving kill@migrated freeze@moving \
  cut-from-etcd@moving cut-from-one@follow cut-from-all@follow overtake@pause outlast@moving kill-app-proxy@paused-all \
  kill-primary-supervise@paused-some kill-target-supervise@moving freeze-app-proxy@follow freeze-primary-supervise@migrate \
  freeze-target-supervise@moving restart-app-proxy@paused-some cut-app-proxy-from-etcd@migrated \
  cut-target-supervise-from-etcd@moving kill-pgbouncer@paused-all freeze-pgbouncer@paused-some kill-app-host@moving \
  kill-etcd@moving freeze-etcd@paused-all kill@undo-pause cut-from-one@undo-move freeze@undone-move
RUNNER := $(CURDIR)/docker/run-in-node $(DEBIAN)
# Versions of Postgres that no node image has; the resource agent's tests run on them as well.
POSTGRES ?= 13 18

.PHONY: help setup check unit integration versions acceptance faults interruptions bench test config

help: ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

setup: ## install what builds and tests need (Debian packages)
	@docker/setup

check: setup ## formatting, clippy with warnings denied, shellcheck, patches of the campaign
	cargo fmt --all -- --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	shellcheck -x $(SCRIPTS)
	set -e; for patch in tests/*/broken/*.patch; do git apply --check "$$patch"; done

unit: setup ## pure decisions, recorded output, the command line
	cargo test --locked --lib --bins --test layers --test shipped_config --test documents --test cli --test faults --test bench

integration: setup ## against real programs in the node image; DEBIAN=… BINARIES="agent …" TESTS="words of their names"
	./start-cluster.sh image --debian $(DEBIAN)
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(RUNNER)" \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$(RUNNER)" \
	  cargo test --locked $(BINARIES:%=--test %) $(if $(TESTS),-- $(TESTS))

versions: setup ## the resource agent on Postgres 13 and 18; POSTGRES="13 15 17 18" for others, VERSION_TESTS= for all tests
	docker/versions/build
	@set -e; for version in $(POSTGRES); do echo "the resource agent on Postgres $$version"; \
	  PGCM_TEST_POSTGRES=$$version $(AGENT_THREADS) \
	  CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(CURDIR)/docker/run-in-node versions" \
	  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$(CURDIR)/docker/run-in-node versions" \
	  cargo test --locked --test agent -- $(VERSION_TESTS:%=%::); done

acceptance: setup ## the Docker cluster under load; DEBIAN=bookworm for the other release
	docker/acceptance $(DEBIAN)

# A cluster of its own as well, beside the acceptance one.
faults: setup ## the fault campaign; ROUNDS=60 SEED=1 MODE=sync|quorum FAULTS="name …" LENGTH=30m
	PGCM_CLUSTER=$(if $(filter pgcm-test,$(PGCM_CLUSTER)),pgcm-faults,$(PGCM_CLUSTER)) docker/faults $(DEBIAN)

interruptions: setup ## failovers interrupted on a cluster; ROWS="name …"; BROKEN=expiry|token|lease
	PGCM_CLUSTER=$(if $(filter pgcm-test,$(PGCM_CLUSTER)),pgcm-interruptions,$(PGCM_CLUSTER)) docker/interruptions $(DEBIAN)

bench: setup ## failovers under load beside their floor: N=20 for each load, DOCS=1 renews docs/performance.md
	docker/bench $(DEBIAN)

test: check unit ## everything that CI runs
	$(MAKE) integration DEBIAN=trixie BINARIES="$(INTEGRATION)"
	$(AGENT_THREADS) $(MAKE) integration DEBIAN=trixie BINARIES=agent
	PGCM_CELLS="$(CELLS)" $(MAKE) integration DEBIAN=trixie BINARIES=interruptions
	$(AGENT_THREADS) $(MAKE) integration DEBIAN=bookworm BINARIES="pgbouncer pooler_checks proxy blockers"
	$(AGENT_THREADS) $(MAKE) integration DEBIAN=bookworm BINARIES=agent TESTS="$(OLDER_TESTS:%=%::)"
	$(MAKE) versions
	$(MAKE) acceptance DEBIAN=trixie
	$(MAKE) acceptance DEBIAN=bookworm PGCM_ROUNDS=2 \
	  ONLY="etcd_crm_mon planned_failovers an_application_pgbouncer each_of_three killing_the_primary"

config: ## renew config/config.toml from the defaults
	cargo run --locked --quiet -- show-config > config/config.toml
