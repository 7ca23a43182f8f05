# make demo, make test, make lint: each sets up what it needs first (scripts/setup), which takes a second when all is there.
.PHONY: setup demo test test-on simulation kills soak differential tools-campaign fuzz lint bench bench-quick profile clean
.NOTPARALLEL:

# Debian keeps mke2fs, debugfs and thin_check where an ordinary user's PATH does not lead.
export PATH := $(PATH):/usr/sbin:/sbin

setup:
	@scripts/setup test

demo:
	@scripts/setup demo
	.venv/bin/thinfs demo $(ARGS)

test:
	@scripts/setup test
	@scripts/setup engine
	.venv/bin/pytest $(ARGS)

# Both commands in a bare root of another Debian, as root and as an ordinary user: make test-on SUITE=bookworm, trixie or sid.
# Needs root. WHO=user: as one of them. TEST_ARGS="-x tests/tools", COMMANDS=demo, FRESH=1: scripts/test-on.
test-on:
	@scripts/setup test-on
	scripts/test-on $(SUITE) $(WHO)

# Every history of up to three calls at every crash point; 100 long ones: every power cut, every fault; the bulk paths. ARGS="--histories 1000 --seed 5000" for others.
simulation:
	@scripts/setup test
	.venv/bin/python -m tests.simulation.sweep $(ARGS)
	.venv/bin/python -m tests.simulation.bulk

# SIGKILL of a server under fio, writers that fsync, and snapshots of a mounted ext4: 50 times, five minutes, as root.
kills:
	@scripts/setup test
	.venv/bin/python -m tests.kills $(ARGS)

# 100 volumes, 16 writers, snapshots, deletes, discards for ten minutes, and what the server takes meanwhile.
soak:
	@scripts/setup test
	.venv/bin/python -m tests.soak $(ARGS)

# A quarter of an hour: metadata damaged by seed, its checksums right again, then used; hostile lines of the socket, Docker's
# files bent. ARGS="--images 100000 --seed 5000 --pool shared" for others.
fuzz:
	@scripts/setup test
	.venv/bin/python -m tests.fuzz.sweep $(ARGS)

# Random histories on the engine and both kernels, SECONDS=1800 of them. ARGS="--once --variant plain --seed 7": one again.
differential: SECONDS ?= 1800
differential:
	@scripts/setup test
	.venv/bin/python -m tests.differential.sweep --seconds $(SECONDS) $(ARGS)

# 50 random pools, ten damaged variants of each, against thin-provisioning-tools 0.9.0 and 1.1.0: 20 minutes. ARGS="--pools 5 --seed 100".
tools-campaign:
	@scripts/setup test
	.venv/bin/python -m tests.tools.campaign $(ARGS)

lint:
	@scripts/setup lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The full run takes up to 15 minutes of a machine that does nothing else, and writes bench/results and the README's table.
bench:
	@scripts/setup bench
	@scripts/setup engine
	.venv/bin/python -m bench run $(ARGS)

# Under two minutes, one round: shows that the bench works and where a change has gone; writes .cache/bench/quick.
bench-quick:
	@scripts/setup bench
	@scripts/setup engine
	.venv/bin/python -m bench run --quick $(ARGS)

# Where the time of a 4 KiB read, a 4 KiB write, a first write and a commit goes: bench/profile.txt.
profile:
	@scripts/setup bench
	.venv/bin/python -m bench profile

# What the commands above made; packages of the machine stay.
clean:
	rm -rf .venv .cache build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	find thinfs kernel_backend tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
	find thinfs -name '*.so' -delete
	rm -rf thinfs/_compiled
