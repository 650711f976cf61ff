# Every target sets up what it needs. CI runs `make test` and nothing else.

# The acceptance cluster has a name of its own: a playground that somebody has running is left alone.
export PGCM_CLUSTER ?= pgcm-test
DEBIAN ?= trixie
# Every shell file of the checkout, by its first line or by what it tells shellcheck.
SCRIPTS := $(shell git ls-files | xargs -r grep -lE '^(\#!.*\b(ba)?sh\b|\# shellcheck shell=)' 2>/dev/null)
# Tests that start real etcd, PgBouncer and Postgres processes.
INTEGRATION := etcd postgres pgbouncer publish proxy failover agent
RUNNER := $(CURDIR)/docker/run-in-node $(DEBIAN)

.PHONY: help setup check unit integration acceptance test config

help: ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

setup: ## install what builds and tests need (Debian packages)
	@docker/setup

check: setup ## formatting, clippy with warnings denied, shellcheck
	cargo fmt --all -- --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	shellcheck -x $(SCRIPTS)

unit: setup ## pure decisions, recorded output, the command line
	cargo test --locked --lib --bins --test layers --test shipped_config --test cli

integration: setup ## against real programs, inside a container of the node image
	./start-cluster.sh image --debian $(DEBIAN)
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(RUNNER)" \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$(RUNNER)" \
	  cargo test --locked $(INTEGRATION:%=--test %)

acceptance: setup ## the Docker cluster under load; DEBIAN=bookworm for the other release
	docker/acceptance $(DEBIAN)

test: check unit ## everything that CI runs
	$(MAKE) integration
	$(MAKE) acceptance DEBIAN=trixie
	$(MAKE) acceptance DEBIAN=bookworm PGCM_ROUNDS=2 ONLY="etcd_crm_mon planned_failovers killing_the_primary"

config: ## renew config/config.toml from the defaults
	cargo run --locked --quiet -- show-config > config/config.toml
