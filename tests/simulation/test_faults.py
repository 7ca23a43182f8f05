"""EIO at every call of a history, and the kernel's answers to single ones (docs/reference/behaviour.md, 5 and 6.1)."""

from pathlib import Path

import pytest

from tests.simulation import fault_runs
from tests.simulation.content_model import BLOCK_BYTES
from tests.simulation.fault_runs import SHAPE, clear_needs_check, fresh
from tests.simulation.history import BLOCK_SECTORS, DATA, METADATA, History, start_pool
from tests.simulation.metadata_check import MetadataCheck
from tests.simulation.power_cut import write_image
from tests.simulation.recording import Call, Fault, Image
from tests.thin_tools import answer, thin_checks
from thinfs.bio import Bio, Op
from thinfs.errors import IOFailed, ThinfsError
from thinfs.pool.modes import PoolMode
from thinfs.pool.thin import Thin
from thinfs.steps import drive

WORD_OF = {Call.READ: "reads", Call.WRITE: "writes", Call.FLUSH: "flushes"}


def test_every_fault_of_a_history_is_answered_without_silent_loss(tmp_path: Path) -> None:
    outcomes, failures = fault_runs.run_all(2000, 30, thin_checks()[:1], tmp_path, stride=2)
    print("seed 2000", *(f"{count} {name}" for name, count in sorted(outcomes.items())), sep="\n")
    assert failures == []
    for device in (METADATA, DATA):
        for call in ("write", "flush"):
            assert any(name.startswith(f"{device} {call} once") for name in outcomes)


def test_every_metadata_read_that_fails_is_answered_without_silent_loss(tmp_path: Path) -> None:
    outcomes, failures = fault_runs.run_all_uncached(2001, 25, thin_checks()[:1], tmp_path, stride=2)
    print("seed 2001", *(f"{count} {name}" for name, count in sorted(outcomes.items())), sep="\n")
    assert failures == []
    assert outcomes["metadata read once -> READ_ONLY"] > 5


class Faulty:
    """A pool with one thin of which block 0 is written and committed, and faults to order."""

    def __init__(self) -> None:
        self.history = history = History(1, SHAPE)
        history.start()
        self.pool = history.pool
        drive(self.pool.message(["create_thin", "0"]))
        self.thin = self.pool.open_thin(0)
        assert self.write(self.thin, 0, b"a" * BLOCK_BYTES) is None
        assert self.flush() is None

    def fail(self, device: str, call: Call, *, for_good: bool = False, nth: int = 1) -> None:
        self.history.journal.fault = Fault(device, frozenset({call}), nth, for_good=for_good)

    def repair(self) -> None:
        self.history.journal.fault = None

    def run(self, thin: Thin, bio: Bio) -> ThinfsError | None:
        thin.submit(bio)
        drive(self.pool.work())
        assert bio.done
        return bio.error

    def write(self, thin: Thin, offset: int, data: bytes) -> ThinfsError | None:
        return self.run(thin, Bio(Op.WRITE, offset, len(data), data))

    def flush(self) -> ThinfsError | None:
        return self.run(self.thin, Bio(Op.FLUSH))

    def used_data_blocks(self) -> int:
        return self.pool.metadata.nr_data_blocks - self.pool.metadata.nr_free_data_blocks

    def images(self) -> tuple[Image, Image]:
        return self.history.devices[METADATA].image, self.history.devices[DATA].image


@pytest.mark.parametrize(
    ("device", "call"), [(METADATA, Call.WRITE), (METADATA, Call.FLUSH), (DATA, Call.FLUSH)],
    ids=["metadata write", "metadata flush", "data flush"],
)  # fmt: skip
def test_a_commit_that_fails_aborts_and_leaves_the_pool_read_only_with_needs_check(device: str, call: Call) -> None:
    faulty = Faulty()
    assert faulty.write(faulty.thin, BLOCK_BYTES, b"b" * 512) is None
    faulty.fail(device, call)
    assert isinstance(faulty.flush(), IOFailed)
    faulty.repair()
    assert (faulty.pool.mode, faulty.pool.metadata.needs_check) == (PoolMode.READ_ONLY, True)
    assert faulty.thin.read(0, 4) == b"aaaa"
    assert isinstance(faulty.flush(), IOFailed), "its changes were aborted"
    assert isinstance(faulty.write(faulty.thin, 2 * BLOCK_BYTES, b"c" * 512), IOFailed)
    assert faulty.write(faulty.thin, 512, b"d" * 512) is None, "what is mapped is written still"


def test_a_message_may_return_success_although_its_commit_failed() -> None:
    faulty = Faulty()
    faulty.fail(METADATA, Call.WRITE)
    drive(faulty.pool.message(["create_thin", "5"]))
    assert faulty.pool.mode is PoolMode.READ_ONLY
    faulty.repair()
    pool = start_pool(*faulty.images(), fresh(faulty.history.binding), lambda: 0.0)
    assert [dev_id for dev_id, _ in pool.metadata.devices()] == [0]


def test_metadata_that_can_no_longer_be_written_comes_back_without_the_flag_when_it_never_could() -> None:
    """Read-only and not failed, as the kernel (seen, tests/conformance/test_faults): the abort only reads."""
    faulty = Faulty()
    assert faulty.write(faulty.thin, BLOCK_BYTES, b"b" * 512) is None
    faulty.fail(METADATA, Call.WRITE, for_good=True)
    assert isinstance(faulty.flush(), IOFailed)
    assert (faulty.pool.mode, faulty.pool.metadata.needs_check) == (PoolMode.READ_ONLY, True)
    assert faulty.thin.read(0, 4) == b"aaaa"
    faulty.repair()
    pool = start_pool(*faulty.images(), fresh(faulty.history.binding), lambda: 0.0)
    assert (pool.mode, pool.metadata.needs_check) == (PoolMode.WRITE, False)
    assert pool.open_thin(0).read(0, 4) == b"aaaa"


def test_a_block_that_cannot_be_zeroed_is_eio_for_its_write_and_leaks() -> None:
    faulty = Faulty()
    for nr_leaked in (1, 2):
        faulty.fail(DATA, Call.WRITE)
        assert isinstance(faulty.write(faulty.thin, BLOCK_BYTES, b"b" * 512), IOFailed)
        assert faulty.used_data_blocks() == 1 + nr_leaked
    faulty.repair()
    assert faulty.pool.mode is PoolMode.WRITE
    assert faulty.thin.read(BLOCK_BYTES, 512) == bytes(512)
    assert faulty.write(faulty.thin, BLOCK_BYTES, b"b" * 512) is None
    assert faulty.flush() is None
    assert MetadataCheck(faulty.images()[0]).run().overcounted == [1, 2]


@pytest.mark.parametrize("call", [Call.READ, Call.WRITE])
def test_a_block_that_cannot_be_copied_is_eio_for_its_write_and_the_shared_one_stays(call: Call) -> None:
    faulty = Faulty()
    drive(faulty.pool.message(["create_snap", "1", "0"]))
    faulty.fail(DATA, call)
    assert isinstance(faulty.write(faulty.thin, 0, b"b" * 512), IOFailed)
    faulty.repair()
    assert faulty.pool.mode is PoolMode.WRITE
    assert faulty.thin.read(0, 512) == faulty.pool.open_thin(1).read(0, 512) == b"a" * 512
    assert faulty.used_data_blocks() == 2
    assert faulty.write(faulty.thin, 0, b"b" * 512) is None
    assert faulty.thin.read(0, 1024) == b"b" * 512 + b"a" * 512


def test_a_read_or_a_write_in_place_that_fails_is_eio_and_nothing_else() -> None:
    faulty = Faulty()
    faulty.fail(DATA, Call.READ)
    with pytest.raises(IOFailed):
        faulty.thin.read(0, 512)
    faulty.fail(DATA, Call.WRITE)
    assert isinstance(faulty.write(faulty.thin, 0, b"b" * 512), IOFailed)
    faulty.fail(DATA, Call.WRITE)
    with pytest.raises(IOFailed):
        faulty.thin.write_now(0, b"b" * 512)
    assert faulty.pool.mode is PoolMode.WRITE
    assert faulty.thin.read(0, 512) == b"a" * 512


def test_a_discard_that_the_data_device_fails_is_a_success_all_the_same() -> None:
    faulty = Faulty()
    faulty.fail(DATA, Call.DISCARD)
    assert faulty.run(faulty.thin, Bio(Op.DISCARD, 0, BLOCK_BYTES)) is None
    assert faulty.thin.read(0, 512) == bytes(512)
    assert faulty.used_data_blocks() == 0


def test_a_message_that_fails_half_way_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Faulty()
    sm = faulty.pool.metadata.objects.metadata_sm
    honest, calls = sm.new_block, []

    def second_fails(self: object) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise IOFailed("made to fail")
        return honest()

    with monkeypatch.context() as patch:
        patch.setattr(type(sm), "new_block", second_fails)
        with pytest.raises(IOFailed):
            drive(faulty.pool.message(["create_thin", "5"]))
    assert (faulty.pool.mode, faulty.pool.metadata.needs_check) == (PoolMode.READ_ONLY, True)
    MetadataCheck(faulty.images()[0]).run()


def test_needs_check_is_cleared_as_thin_check_clears_it(tmp_path: Path) -> None:
    faulty = Faulty()
    assert faulty.write(faulty.thin, BLOCK_SECTORS * 512, b"b" * 512) is None
    faulty.fail(METADATA, Call.WRITE)
    faulty.flush()
    faulty.repair()
    image, data = faulty.images()
    write_image(image, tmp_path / "image")
    assert answer("thin_check", "--clear-needs-check-flag", tmp_path / "image").returncode == 0
    clear_needs_check(image)
    assert (tmp_path / "image").read_bytes()[:4096] == image.chunk(0)
    assert start_pool(image, data, fresh(faulty.history.binding), lambda: 0.0).mode is PoolMode.WRITE
