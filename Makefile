# The steps of CI and of every day. All of them use one profile and one target folder.

SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help demo build test fmt lint doc deny check-examples conformance conformance-short conformance-fronts attacks exhaustion faults pushpin fuzz \
	coverage bench fanout chaos capacity plan ticker

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: build ## Build, and start the demo: a backend, the gateway, and a page (DEMO_ARGS="--for 30s")
	@exec $(TARGET)/debug/sluicegate demo $(DEMO_ARGS)

build:
	@scripts/setup build
	$(CARGO) build --locked

test: ## Install what the tests need and run all of them; the last line counts them
	@scripts/setup test
	@scripts/test

fmt: ## Format the Rust code
	$(CARGO) fmt

lint: ## Check formatting, clippy, dependencies, shell scripts and the Dockerfile
	@scripts/setup lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO_DENY)
	target/tools/lint/bin/shellcheck scripts/setup scripts/test scripts/fuzz .ci/run
	target/tools/lint/bin/hadolint Dockerfile

deny: ## Check the dependencies' licenses, sources and bans
	@scripts/setup lint
	$(CARGO_DENY)

CARGO_DENY = target/tools/bin/cargo-deny --locked check bans licenses sources

doc: ## Build the documentation of the crate; a warning is an error
	@scripts/setup build
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

check-examples: build examples/tls/app.crt ## Run `sluicegate check` on every file in examples/
	@set -o pipefail; shopt -s nullglob; files=(examples/*.yaml examples/*/*.yaml); \
	[ $${#files[@]} -gt 0 ] || { echo "no files in examples/" >&2; exit 1; }; \
	failed=0; for file in "$${files[@]}"; do \
	  echo "check $$file"; $(TARGET)/debug/sluicegate check -c "$$file" || failed=1; \
	done; exit $$failed

# What examples/tls/front-door.yaml names; git does not see it.
examples/tls/app.crt:
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=app.example.com \
	  -addext subjectAltName=DNS:app.example.com -keyout examples/tls/app.key -out $@

conformance: build ## Run all of Autobahn|Testsuite, and write docs/conformance.md (needs CPython 2.7)
	@scripts/setup conformance
	@SLUICEGATE=$(abspath $(TARGET)/debug/sluicegate) node tests/conformance/run.mjs

conformance-short: build ## Run the part of it that CI does (a minute, needs CPython 2.7)
	@scripts/setup conformance
	@SLUICEGATE=$(abspath $(TARGET)/debug/sluicegate) node tests/conformance/short.mjs

conformance-fronts: build ## Run the part of it on frames over HTTP/1.1 and HTTP/2, clear and TLS (needs CPython 2.7)
	@scripts/setup conformance
	@SLUICEGATE=$(abspath $(TARGET)/debug/sluicegate) node tests/conformance/fronts.mjs

attacks: ## Play every attack against a backend, through nginx and through the gateway; writes docs/attacks.md
	@scripts/setup test
	SLUICEGATE_ATTACKS=full $(CARGO) test --locked --test attacks -- --exact --nocapture the_pages_have_every_case_as_it_is

exhaustion: ## Play attacks on memory and CPU time beside legal clients, through the gateway and nginx; writes docs/exhaustion.md
	@scripts/setup test
	$(CARGO) bench --locked --bench exhaustion --no-run
	@set -o pipefail; { echo "# Exhaustion"; echo; \
	  echo "By \`make exhaustion\` on $$(date -u +%F) at commit $$(git rev-parse --short HEAD), $$(nproc) cores."; \
	  $(CARGO) bench --locked --bench exhaustion; } | tee $(TARGET)/exhaustion.md
	@mv $(TARGET)/exhaustion.md docs/exhaustion.md

faults: build ## Kill, stop and cut off gateways and Redis under traffic, by many seeds; writes docs/faults.md (8 minutes)
	@scripts/setup test
	@set -o pipefail; { echo "# Faults"; echo; \
	  echo "By \`make faults\` on $$(date -u +%F) at commit $$(git rev-parse --short HEAD), $$(nproc) cores."; \
	  SLUICEGATE=$(abspath $(TARGET)/debug/sluicegate) node tests/faults/run.mjs; } | tee $(TARGET)/faults.md
	@mv $(TARGET)/faults.md docs/faults.md

SEED ?=
FOR ?= 60s

chaos: build ## Break a chat in three regions while its users talk, and count; writes docs/chaos.md (SEED=, FOR=60s of faults)
	@scripts/setup chaos
	@npm run --silent build --prefix clients/typescript
	@set -o pipefail; { echo "# Chaos"; echo; \
	  echo "By \`make chaos\` on $$(date -u +%F) at commit $$(git rev-parse --short HEAD), $$(nproc) cores."; \
	  SLUICEGATE=$(abspath $(TARGET)/debug/sluicegate) node tests/chat/chaos.mjs "$(SEED)" "$(FOR)"; } | tee $(TARGET)/chaos.md
	@mv $(TARGET)/chaos.md docs/chaos.md

pushpin: build ## Play the same cases through Debian's pushpin and the gateway, and load both; writes docs/pushpin.md (2 minutes)
	@scripts/setup test
	@set -o pipefail; { echo "# Beside Pushpin"; echo; \
	  echo "By \`make pushpin\` on $$(date -u +%F) at commit $$(git rev-parse --short HEAD), $$(nproc) cores."; \
	  SLUICEGATE=$(abspath $(TARGET)/debug/sluicegate) node tests/pushpin/page.mjs; } | tee $(TARGET)/pushpin.md
	@mv $(TARGET)/pushpin.md docs/pushpin.md

# Bash has a variable of this name, which counts the seconds of the shell: only what the command line says counts.
FUZZ_SECONDS = $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60)
JOBS ?= 1

fuzz: ## Run every fuzz target and write docs/fuzzing.md (SECONDS=60 each, JOBS=1 at a time, TARGETS="scan utf8")
	@scripts/setup fuzz
	@scripts/fuzz $(FUZZ_SECONDS) $(JOBS) $(TARGETS)

coverage: ## Measure which lines of src/ws and src/policy the unit tests run; writes docs/coverage.md
	@scripts/setup coverage
	@node scripts/coverage.mjs

bench: ## Measure memory and CPU beside nginx and beside no proxy (takes minutes, needs nginx)
	@scripts/setup test
	$(CARGO) bench --locked --bench load --no-run
	@set -o pipefail; { echo "# Measured"; echo; echo "By \`make bench\` on $$(date -u +%F) at commit $$(git rev-parse --short HEAD), $$(nproc) cores."; \
	  echo "Compare the rows: absolute figures of a shared machine mean little."; \
	  $(CARGO) bench --locked --bench load; } | tee $(TARGET)/bench.md
	@mv $(TARGET)/bench.md docs/bench.md

ROUNDS ?= 3

fanout: ## Measure fan-out beside Debian's Pushpin, with the engines in memory and Redis; writes docs/fanout.md (ROUNDS=3)
	@scripts/setup fanout
	$(CARGO) bench --locked --bench fanout --no-run
	@set -o pipefail; { echo "# Fan-out, measured"; echo; \
	  echo "By \`make fanout\` on $$(date -u +%F) at commit $$(git rev-parse --short HEAD), $$(nproc) cores."; echo; \
	  $(CARGO) bench --locked --bench fanout -- $(ROUNDS); } | tee $(TARGET)/fanout.md
	@mv $(TARGET)/fanout.md docs/fanout.md

capacity: ## Measure the constants of docs/capacity.md, simulate 1,000,000 sessions, and write the page (6 minutes, 9 GiB)
	@scripts/setup fanout
	$(CARGO) bench --locked --bench capacity --no-run
	$(CARGO) bench --locked --bench capacity -- write "on $$(date -u +%F) at commit $$(git rev-parse --short HEAD), $$(nproc) cores"

plan: ## Evaluate the model of docs/capacity.md (ARGS="users=200000 fan_out=50", ARGS="chat cores=16")
	@$(CARGO) bench --quiet --locked --profile dev --bench capacity -- plan $(ARGS)

CLIENTS ?= 15000

ticker: ## Measure examples/ticker, 1,000 prices a second to many clients, some of them slow; writes docs/ticker.md (CLIENTS=15000, 4 minutes)
	@scripts/setup test
	$(CARGO) bench --locked --bench ticker --no-run
	@set -o pipefail; { echo "# Prices, measured"; echo; \
	  echo "By \`make ticker\` on $$(date -u +%F) at commit $$(git rev-parse --short HEAD), $$(nproc) cores."; echo; \
	  $(CARGO) bench --locked --bench ticker -- $(CLIENTS); } | tee $(TARGET)/ticker.md
	@mv $(TARGET)/ticker.md docs/ticker.md
