# Evertwin: build, test, show and measure. `make help` lists the targets.
CARGO ?= cargo
TRIPLE := x86_64-unknown-linux-gnu
EVERTWIN := target/$(TRIPLE)/release/evertwin
LAB := target/$(TRIPLE)/release/evertwin-lab

.PHONY: help build test test-native test-lab sim demo demo-native demo-lab bench guest-debian lab lab-build lab-previous lint fmt sabotage lab-sabotage crashpoints disk-torture deps clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

build: ## the evertwin binary, static, in target/x86_64-unknown-linux-gnu/release
	$(CARGO) build --release --locked --package evertwin

# Where there is no /dev/kvm, an emulated host has one: KVM=lab asks for it.
KVM ?= $(if $(wildcard /dev/kvm),native,lab)

test: test-$(KVM) ## formatting, lints, unit tests and end-to-end tests (root)

test-native:
	@tests/run-all

test-lab:
	@echo "test: /dev/kvm of an emulated host is used: it takes more than an hour"
	@tests/run-all lab

SEEDS ?= 200000

sim: ## the protocol core under SEEDS=200000 seeded schedules of failures, and broken on purpose
	$(CARGO) run --release --locked --package evertwin-simulator -- --seeds $(SEEDS)

demo: demo-$(KVM) ## a guest keeps its TCP connection while its primary is killed (30 s)

demo-native: build
	@$(EVERTWIN) demo

demo-lab: build lab-build
	@echo "demo: /dev/kvm of an emulated host is used: it takes minutes, and its times mean nothing"
	@$(LAB) --in-host -- /tmp/evertwin demo --slow 10

bench: build lab-build ## the figures, their floors and aims: pause, delay, throughput, blackout, link, disk, resync, boot, memory; report in target/bench
	$(CARGO) run --release --locked --package evertwin-benches

guest-debian: ## a Debian guest (kernel, initrd, root image) from Debian's packages, in target/guest-debian (root)
	@guest-images/debian/build

lab: build lab-build lab-previous ## emulated hosts are powered off, frozen and cut off; NAME="scenario..." runs some (root)
	@$(LAB) $(NAME)

lab-build: guest-debian
	@tests/install-deps lab
	@$(CARGO) build --release --locked --package evertwin-lab

# An upgrade starts from twins of the previous protocol.
lab-previous:
	@$(CARGO) build --release --locked --package evertwin --features previous-protocol --target-dir target/previous

lint: ## formatting and lints only
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	cd guest-images/pico && $(CARGO) fmt --check && $(CARGO) clippy --locked -- -D warnings

fmt: ## format everything
	$(CARGO) fmt --all
	cd guest-images/pico && $(CARGO) fmt

sabotage: ## break each invariant on purpose and see the tests find it
	@tests/sabotage

lab-sabotage: lab-build ## break the monitor on purpose and see the lab find it (root)
	@tests/sabotage lab

crashpoints: ## kill each twin at each crash point in turn (2 min); ARGS="--point NAME --node a --rounds 5 --seed N" or --list (root)
	@tests/install-deps
	$(CARGO) build --release --locked --package evertwin --features failpoints --target-dir target/sabotage
	@$(CARGO) run --locked --package evertwin-crashpoints -- $(ARGS)

disk-torture: build lab-build ## kill, freeze and cut off twins at random (15 min), both disks compared each time, and fio in the lab; ARGS="--minutes 2 --seed N" (root)
	@tests/install-deps
	@$(LAB) fio-torture
	@$(CARGO) run --release --locked --package evertwin-disk-torture -- $(ARGS)

deps: ## install from Debian what the tests need and this machine lacks (root)
	@tests/install-deps

clean: ## remove everything that was built
	$(CARGO) clean
	cd guest-images/pico && $(CARGO) clean
