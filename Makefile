# The front door: everything is built by CMake (CMakeLists.txt, CMakePresets.json).
#
#   make experiments   build, run the seed's experiment against RocksDB, print the table
#   make check         build and pass the tests, plain and under the sanitizers
#   make coverage      what the tests reach of src/, by lines and branches (SCALE, MISSED)
#   make soak          crashes, faults, damage, random work: TIME seconds (3600), from SEED on
#   make power         loss of power on the real kernel: CUTS (200) of each store (needs root)
#   make               build the library, the tools and the tests
#
# Options of `make experiments`: KEYS, OPS, ENGINES, OUT (JSON lines), DIR (where the stores go),
# WORKLOAD, SIZES, REPEAT: scripts/experiments has them all. Variables given to make
# on its command line are in the environment of what it runs.

.DEFAULT_GOAL := all
.PHONY: all experiments check coverage soak power deps-build deps-bench deps-check deps-power release debug asan tsan tidy format clean

all: release

deps-build:
	@scripts/install-deps build
deps-bench:
	@scripts/install-deps build bench
deps-check:
	@scripts/install-deps build check
deps-power:
	@scripts/install-deps build bench power

release debug asan tsan: deps-build
	@cmake --preset $@ >/dev/null
	@cmake --build build/$@

experiments: deps-bench
	@cmake --preset bench >/dev/null
	@cmake --build build/bench
	@scripts/experiments build/bench

check: deps-check
	@scripts/check

soak: deps-check
	@scripts/soak

power: deps-power
	@scripts/power

coverage: deps-check
	@scripts/coverage

tidy: deps-check
	@scripts/tidy

format:
	@git ls-files '*.c' '*.h' '*.cc' | xargs clang-format -i

clean:
	rm -rf build
