# The targets are the commands of daily work; what they do is in the tools they
# call and in tests/. Debian packages that a target needs are installed by it.

PREFIX ?= /usr/local
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system
# networkd-dispatcher looks here and in /usr/lib only, whatever the prefix.
HOOKDIR ?= /etc/networkd-dispatcher
RUNDIR ?= /run
BUILT ?= bin/ebnet
GO ?= go
CLANG_FORMAT ?= clang-format-16
SOAK ?= 10m
SOAK_REPORT ?= bin/soak.json
BENCH_PACKAGES ?= ./ipam ./tests/datapath

# A tag if there is one, else the newest version in the changelog.
VERSION ?= $(shell git describe --tags --dirty --match 'v[0-9]*' 2>/dev/null || \
	sed -n 's/^## \[\{0,1\}\(v\{0,1\}[0-9][^] ]*\).*/\1/p;' CHANGELOG.md 2>/dev/null | head -n 1)
LDFLAGS = -s -w $(if $(VERSION),-X main.version=$(VERSION))

.DEFAULT_GOAL := help
.PHONY: help build generate test test-kernels soak bench demo lint fmt verify install uninstall clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/ebnet
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ebnet ./cmd/ebnet

generate: ## compile bpf/ and write the Go files for it (needs clang-16)
	tests/install-deps.sh generate
	$(GO) generate ./loader ./cmd/internal/bench

test: ## run all tests (as root, or those that need it are skipped)
	tests/install-deps.sh test
	$(GO) test -count=1 -timeout 20m -json ./... | $(GO) run ./tests/report

test-kernels: ## run the core of the tests on Debian's kernels, in emulated machines (5 min)
	tests/kernels/run.sh

soak: ## random traffic, commands and kills for SOAK=10m; report on stdout and in SOAK_REPORT
	tests/install-deps.sh test
	mkdir -p $(dir $(SOAK_REPORT))
	EBNET_SOAK=$(SOAK) EBNET_SOAK_REPORT=$(abspath $(SOAK_REPORT)) \
		$(GO) test -count=1 -timeout 0 -run TestPrivilegedSoak -v ./tests/soak

bench: ## run the benchmarks
	$(GO) test -run '^$$' -bench . $(BENCH_PACKAGES)

demo: ## show ebnet at work in namespaces of its own (as root, 30 s)
	tests/install-deps.sh demo
	tests/demo/demo.sh

lint: ## check formatting, vet, staticcheck
	tests/install-deps.sh lint
	tests/lint.sh

fmt: ## format all source
	tests/install-deps.sh lint
	gofmt -w $$($(GO) list -f '{{.Dir}}' ./...)
	$(CLANG_FORMAT) -i bpf/*.h bpf/*.c

verify: ## check that the generated files match their source
	tests/install-deps.sh generate
	tests/verify.sh

UNITS = ebnet.service ebnet-changed.service ebnet-changed.path
HOOKS = $(foreach state,routable degraded carrier no-carrier off configured,$(HOOKDIR)/$(state).d/50-ebnet)
COMPLETION = $(PREFIX)/share/bash-completion/completions/ebnet
FILL = sed 's|@BINDIR@|$(PREFIX)/bin|; s|@RUNDIR@|$(RUNDIR)|g'

install: build ## install below DESTDIR and PREFIX: ebnet, completion, systemd units, a hook
	install -D -m 0755 $(BUILT) $(DESTDIR)$(PREFIX)/bin/ebnet
	mkdir -p $(DESTDIR)$(dir $(COMPLETION)) $(DESTDIR)$(UNITDIR)
	$(BUILT) completion bash > $(DESTDIR)$(COMPLETION)
	for unit in $(UNITS); do \
		$(FILL) cmd/ebnet/systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit && chmod 0644 $(DESTDIR)$(UNITDIR)/$$unit || exit 1; done
	for hook in $(HOOKS); do \
		mkdir -p $(DESTDIR)$$(dirname $$hook) && $(FILL) cmd/ebnet/systemd/hook > $(DESTDIR)$$hook && chmod 0755 $(DESTDIR)$$hook || exit 1; done

uninstall: ## remove what install put there
	rm -f $(addprefix $(DESTDIR),$(PREFIX)/bin/ebnet $(COMPLETION) $(addprefix $(UNITDIR)/,$(UNITS)) $(HOOKS))

clean: ## remove what was built
	rm -rf bin
