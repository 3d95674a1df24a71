# The front door. Recipes over a few lines are scripts in integration/scripts.

HOST := $(shell rustc -vV | sed -n 's/^host: //p')
KILN := target/$(HOST)/release/kiln

.PHONY: build quickstart test test-all check fmt

# One static binary: glibc is linked in, so that it runs in a scratch image.
build:
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin kiln --target $(HOST)

# Builds Kiln, makes a base image from busybox-static, warms a volume, builds an image from it twice, and runs it.
quickstart: build
	integration/scripts/quickstart $(KILN)

# All tests but the slow ones.
test:
	integration/scripts/install-test-tools
	integration/scripts/test

# Those, and the slow ones.
test-all: build test
	KILN=$(CURDIR)/$(KILN) integration/scripts/pod-test

# Formatting, lints, and the rules of the architecture.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --locked -p kiln-integration --test architecture

fmt:
	cargo fmt --all
