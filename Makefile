# The front door. Recipes over a few lines are scripts in integration/scripts.

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
KILN := target/$(HOST)/release/kiln

.PHONY: build images images-arm64 quickstart test test-all bench check fmt docs bless

# One static binary: glibc is linked in, so that it runs in a scratch image.
build:
	@integration/scripts/install-build-tools
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin kiln --target $(HOST)

# Kiln's own images, built by Kiln: OCI layouts and archives that docker loads, in out/images. REGISTRY=… pushes them.
images: build
	integration/scripts/images $(KILN)

# The same for amd64 and arm64, joined in one index when pushed. Needs Debian's cross-compiler and Rust's target; installs
# them, or says which can't be had.
ARM64 := target/aarch64-unknown-linux-gnu/release
images-arm64: build
	integration/scripts/build-arm64
	ARCHES="amd64 arm64" KILN_arm64=$(ARM64)/kiln BUSYBOX_arm64=$(ARM64)/busybox integration/scripts/images $(KILN)

# Builds Kiln, makes a base image from busybox-static, warms a volume, builds an image from it twice, and runs it.
quickstart: build
	integration/scripts/quickstart $(KILN)

# All tests but the slow ones.
test:
	integration/scripts/install-test-tools
	integration/scripts/test

# Writes what the builds of integration/cases/ come to into the case files. Look at the difference before it is committed.
bless:
	KILN_BLESS=1 cargo test --locked -p kiln-integration --test table

# Those, and the slow ones.
test-all: build test
	integration/scripts/cache-race $(KILN)
	KILN=$(CURDIR)/$(KILN) integration/pods/all
	KILN=$(CURDIR)/$(KILN) KILN_PODS=30 cargo test --locked -p kiln-integration --test pods many_one_shot_pods
	KILN=$(CURDIR)/$(KILN) KILN_CONTEXT_BYTES=2147483648 cargo test --locked -p kiln-integration --test object_stores a_large -- --test-threads=1
	KILN=$(CURDIR)/$(KILN) KILN_CONTEXT_BYTES=2147483648 cargo test --locked -p kiln-integration --test git_sources a_large
	integration/scripts/check-manifests
	QUICK=1 integration/scripts/quickstart-test
	KILN=$(CURDIR)/$(KILN) integration/scripts/readers-test
	KILN=$(CURDIR)/$(KILN) integration/scripts/memory-test

# Kiln beside buildah and beside what the machine can do; writes docs/performance.md. Takes an hour and 20 GB of disk.
# BENCH="--runs 1 --only copy-one --out target/bench" measures one workload.
bench: build
	integration/scripts/install-bench-tools
	cargo run --locked -q -p kiln-integration --bin kiln-bench -- --kiln $(KILN) --work target/bench --out docs $(BENCH)

# Formatting, lints, and the rules of the architecture.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --locked -p kiln-integration --test architecture

fmt:
	cargo fmt --all

# The generated pages of docs/. A test says when they are out of date.
docs:
	cargo build --locked --bin kiln
	target/debug/kiln flags > docs/flags.md.new && mv docs/flags.md.new docs/flags.md
