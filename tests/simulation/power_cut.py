"""Power cuts at every flush of a history, and what is demanded of each image that one leaves.

Promises: at every flush boundary the two extremes and `nr_subsets` random subsets of the unflushed writes, each with
one torn; every image opens with the engine in write mode, has exact reference counts, passes every external checker
and allows what the model demands. A finding is remembered only while every block it was drawn from is unchanged.
"""

import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Final

from tests.simulation.content_model import BLOCK_BYTES, ZEROS, PoolModel
from tests.simulation.history import DATA, METADATA, History, start_pool
from tests.simulation.metadata_check import Findings, MetadataCheck
from tests.simulation.recording import NOTHING, Choice, Image, RecordingDevice, everything, some
from tests.thin_tools import version_of
from thinfs.bio import Bio, Op
from thinfs.errors import ThinfsError
from thinfs.pool.modes import PoolMode, PoolSettings
from thinfs.pool.pool import Pool
from thinfs.steps import drive

_NR_PARALLEL: Final = 16
_REPEATED_SHARE: Final = 0.01  # of images whose reachable blocks an external checker has seen already
_LIVED_ON_SHARE: Final = 0.02


class CutFound(AssertionError):
    """An image that breaks a promise."""


class ExternalChecks:
    """thin_check of several versions, many at once: version 1 sleeps half a second however small the image is."""

    def __init__(self, directory: Path, programs: Sequence[Path]) -> None:
        self._directory = directory
        self._programs = [(program, version_of(program)) for program in programs]
        self._threads = ThreadPoolExecutor(_NR_PARALLEL)
        self._running: list[Future[str]] = []
        self.counts: Counter[str] = Counter()

    def run(self, image: Image, *, overcounted: bool, context: str) -> None:
        if self._programs:
            path = self._directory / f"{len(self._running)}.img"
            write_image(image, path)
            self._running.append(self._threads.submit(self._check, path, overcounted, context))

    def _check(self, path: Path, overcounted: bool, context: str) -> str:
        for program, version in self._programs:
            done = subprocess.run([program, path], capture_output=True, text=True, check=False)
            self.counts[f"thin_check {version}"] += 1
            if done.returncode and overcounted and not version.startswith("0."):
                # The kernel's own order: a commit may fall between an allocation and its mapping, or between a
                # discard's unmap and its last dec (docs/reference/behaviour.md, 6.4). Version 1 calls that an error.
                self.counts[f"thin_check {version} objects to overcounted data blocks"] += 1
            elif done.returncode:
                output = " / ".join((done.stdout + done.stderr).splitlines())
                return f"{context}: {program}: exit {done.returncode}: {output}"
        path.unlink()
        return ""

    def failures(self) -> list[str]:
        """Waits for all."""
        self._threads.shutdown()
        return [failure for run in self._running if (failure := run.result())]


def write_image(image: Image, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(image.size_bytes)
        for number, chunk in image.chunks.items():
            file.seek(number * image.chunk_bytes)
            file.write(chunk)


class PowerCuts:
    """Cuts the power of one history at all its flushes; counts what it tried."""

    def __init__(self, history: History, external: ExternalChecks, nr_subsets: int = 20) -> None:
        self.history = history
        self.external = external
        self.nr_subsets = nr_subsets
        self.random = Random(history.random.random())
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._known: dict[bytes, Findings] = {}
        history.journal.on_flush = self.at_flush

    def at_flush(self, device: RecordingDevice | None = None) -> None:
        """All the cuts between the flush before and this one."""
        metadata, data = (self.history.devices[name] for name in (METADATA, DATA))
        self.counts["flush boundaries"] += 1
        choices = [(NOTHING, NOTHING), (everything(metadata.unflushed), everything(data.unflushed))]
        choices += [
            (some(metadata.unflushed, self.random), some(data.unflushed, self.random)) for _ in range(self.nr_subsets)
        ]
        self.counts["points"] += len(choices)
        for of_metadata, of_data in dict.fromkeys(choices):
            self.counts["distinct images"] += 1
            self._try(metadata.power_cut(of_metadata), data.power_cut(of_data), (of_metadata, of_data))

    def at_the_end(self) -> None:
        """Whatever was under way has come to rest: after one more commit no count is too high."""
        self.history.journal.killed_in = None
        self.history.status()
        self.at_flush()
        if self.history.nr_ends:  # of the process: what it had allocated and not mapped, nobody maps any more
            return
        if overcounted := MetadataCheck(self.history.devices[METADATA].stable).run().overcounted:
            self.failures.append(f"seed {self.history.seed}: data blocks {overcounted} are counted too high at the end")

    def _try(self, metadata: Image, data: Image, choice: tuple[Choice, Choice]) -> None:
        history = self.history
        context = (
            f"seed {history.seed}, {len(history.log)} operations, the last {history.log[-2:]}, "
            f"flush {self.counts['flush boundaries']}, cut {choice}"
        )
        try:
            self._check(metadata, data, context)
        except (ThinfsError, AssertionError) as error:
            self.failures.append(f"{context}: {type(error).__name__}: {error}")

    def _check(self, metadata: Image, data: Image, context: str) -> None:
        if metadata.chunk(0).strip(b"\0"):
            self._check_metadata(metadata, context)
        else:
            self.counts["unformatted images"] += 1
        lives_on = self.random.random() < _LIVED_ON_SHARE
        pool = start_pool(metadata, data, self._binding(), lambda: 0.0)
        found = check_contents(pool, self.history.model)
        if lives_on:
            self.counts["lived on"] += 1
            self._live_on(pool, metadata, data, found)

    def _binding(self) -> PoolSettings:
        old = self.history.binding
        return PoolSettings(old.features, old.low_water_blocks, old.nr_data_blocks)

    def _check_metadata(self, image: Image, context: str) -> None:
        key = image.chunk(0)
        known = self._known.get(key)
        if known is not None and known.still_hold(image):
            self.counts["reachable metadata seen before"] += 1
            if self.random.random() < _REPEATED_SHARE:
                self._check_externally(image, known, context)
        else:
            findings = self._known[key] = MetadataCheck(image).run()
            self.counts["distinct reachable metadata"] += 1
            self._check_externally(image, findings, context)

    def _check_externally(self, image: Image, findings: Findings, context: str) -> None:
        self.counts["images with overcounted data blocks"] += bool(findings.overcounted)
        self.counts["images checked externally"] += 1
        self.external.run(image, overcounted=bool(findings.overcounted), context=context)

    def _live_on(self, pool: Pool, metadata: Image, data: Image, found: dict[int, dict[int, bytes]]) -> None:
        """Write to every thin, snapshot one, end, and look again: the pool is as good as before the cut."""
        for dev_id in found:
            thin = pool.open_thin(dev_id)
            block, contents = self.random.randrange(self.history.shape.thin_blocks), self.random.randbytes(BLOCK_BYTES)
            bio = Bio(Op.WRITE, block * BLOCK_BYTES, BLOCK_BYTES, contents)
            thin.submit(bio)
            drive(pool.work())
            if bio.done and bio.error is None:  # else the pool is full
                found[dev_id][block] = contents
            thin.submit(Bio(Op.FLUSH))
            drive(pool.work())
            pool.close_thin(thin)
        drive(pool.close())
        MetadataCheck(metadata).run()
        again = contents_of(start_pool(metadata, data, self._binding(), lambda: 0.0), found)
        if again != found:
            raise CutFound("after more writes and a clean end the contents are others")


def contents_of(pool: Pool, blocks_of: dict[int, dict[int, bytes]]) -> dict[int, dict[int, bytes]]:
    found = {}
    for dev_id, blocks in blocks_of.items():
        thin = pool.open_thin(dev_id)
        found[dev_id] = {block: thin.read(block * BLOCK_BYTES, BLOCK_BYTES) for block in blocks}
        pool.close_thin(thin)
    return found


def check_contents(pool: Pool, model: PoolModel, *, mode: PoolMode = PoolMode.WRITE) -> dict[int, dict[int, bytes]]:
    """What the model demands of a pool just opened; the contents found."""
    if pool.mode is not mode or (mode is PoolMode.WRITE and pool.metadata.needs_check):
        raise CutFound(f"the pool comes up in mode {pool.mode.name}, needs_check {pool.metadata.needs_check}")
    ids = {dev_id for dev_id, _ in pool.metadata.devices()}
    if wrong := model.wrong_ids(ids):
        raise CutFound(f"thins {sorted(ids)}: {sorted(wrong)} should not be so")
    if pool.metadata.transaction_id not in model.transaction_ids:
        raise CutFound(f"transaction id {pool.metadata.transaction_id}, not {model.transaction_ids}")
    if bool(pool.metadata.held_root) not in model.held:
        raise CutFound(f"held root {pool.metadata.held_root}")
    everything = model.everything()
    found: dict[int, dict[int, bytes]] = {}
    for dev_id in ids:
        thin, expected = pool.open_thin(dev_id), everything[dev_id]
        found[dev_id] = {}
        mapped = {block for begin, end, _, _ in thin.internal.mapped_runs(0, 1 << 48) for block in range(begin, end)}
        for block in mapped | expected.blocks():
            contents = thin.read(block * BLOCK_BYTES, BLOCK_BYTES) if block in mapped else ZEROS
            if not expected.accepts(block, contents):
                raise CutFound(describe(dev_id, block, contents, pool, model))
            found[dev_id][block] = contents
        pool.close_thin(thin)
    return found


def describe(dev_id: int, block: int, contents: bytes, pool: Pool, model: PoolModel) -> str:
    expected = model.everything()[dev_id]
    nr_candidates = len(expected.candidates(block))
    tags = sorted({int.from_bytes(contents[i : i + 4], "little") for i in range(0, len(contents), 512)})
    wanted = sorted(
        {
            int.from_bytes(one[i : i + 4], "little")
            for one in expected.candidates(block)
            if isinstance(one, bytes)
            for i in range(0, len(one), 512)
        }
    )
    return f"thin {dev_id} block {block}: holds writes {tags}, allowed are {wanted} in {nr_candidates} states"


def run_history(
    seed: int, nr_steps: int, programs: Sequence[Path], directory: Path | None = None, nr_subsets: int = 20
) -> PowerCuts:
    """One history from a blank pool to its end, cut at every flush."""
    with tempfile.TemporaryDirectory(dir=directory) as work:
        history = History(seed)
        cuts = PowerCuts(history, ExternalChecks(Path(work), programs), nr_subsets)
        try:
            history.start()
            for _ in range(nr_steps):
                history.step()
                if cuts.failures:
                    break
            cuts.at_the_end()
        except (AssertionError, ThinfsError) as error:  # of the live pool, BadMetadata above all: a result like others
            last = f"seed {seed}, {len(history.log)} operations, the last {history.log[-3:]}"
            cuts.failures.append(f"{last}: {type(error).__name__}: {error}")
        finally:
            cuts.failures += cuts.external.failures()
            cuts.counts += cuts.external.counts
        return cuts
