"""A pool and its volumes from Python: `thinfs.open_pool`. Plain synchronous code, no server, no FUSE, no privileges.

Promises: the engine's answers and decisions, so the files are pools of dm-thin before, meanwhile (after a flush) and
afterwards; both files are locked against every other thinfs; what was flushed survives a crash at any moment, and
leaving the `with` commits. One thread at a time. Stable: names and meanings here change only with a major version.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from thinfs.bio import Bio, Op
from thinfs.blockdev import BlockDevice, Buffer, FileDevice
from thinfs.dm.message import split_message
from thinfs.dm.status import PoolStatus
from thinfs.dm.table import Feature
from thinfs.errors import InvalidArgument, NoSpace
from thinfs.library.volume_file import VolumeFile
from thinfs.ondisk.thin import DeviceDetails
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import PoolSettings
from thinfs.pool.pool import Pool as Engine
from thinfs.pool.thin import Thin
from thinfs.steps import Steps, drive
from thinfs.units import DATA_BLOCK_MAX_SECTORS, DATA_BLOCK_MIN_SECTORS, DATA_BLOCK_MULTIPLE_SECTORS, SECTOR_BYTES

DEFAULT_BLOCK_BYTES: Final = 65536


def open_pool(
    metadata: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    zero_new_blocks: bool = True,
    discard_passdown: bool = True,
    read_only: bool = False,
) -> "Pool":
    """Open a pool over two files or block devices; the metadata is formatted where its first block is blank.

    `block_bytes` is the data block size, a multiple of 64 KiB; of a pool that is there it must be its own. It is as
    large as the data file. Raises BackingMissing, AccessDenied, Busy (another process has it), InvalidArgument (sizes),
    BadMetadata (damage). `read_only` refuses every change and formats nothing.
    """
    with ExitStack() as stack:
        metadata_device = FileDevice(os.fspath(metadata))
        stack.callback(metadata_device.close)
        data_device = FileDevice(os.fspath(data))
        stack.callback(data_device.close)
        pool = open_pool_on(
            metadata_device,
            data_device,
            block_bytes=block_bytes,
            zero_new_blocks=zero_new_blocks,
            discard_passdown=discard_passdown,
            read_only=read_only,
        )
        pool.at_close(stack.pop_all().close)
        return pool


def open_pool_on(
    metadata: BlockDevice,
    data: BlockDevice,
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    zero_new_blocks: bool = True,
    discard_passdown: bool = True,
    read_only: bool = False,
) -> "Pool":
    """`open_pool` over devices of the caller's, which stay his."""
    sectors, rest = divmod(block_bytes, SECTOR_BYTES)
    in_range = DATA_BLOCK_MIN_SECTORS <= sectors <= DATA_BLOCK_MAX_SECTORS
    if rest or not in_range or sectors % DATA_BLOCK_MULTIPLE_SECTORS:
        raise InvalidArgument(f"block_bytes {block_bytes}: a multiple of 65536, from 65536 to 1 GiB")
    features = {Feature.ERROR_IF_NO_SPACE}  # nobody could make room while a call waits
    if not zero_new_blocks:
        features.add(Feature.SKIP_BLOCK_ZEROING)
    if not discard_passdown:
        features.add(Feature.NO_DISCARD_PASSDOWN)
    if read_only:
        features.add(Feature.READ_ONLY)
    nr_data_blocks = data.size_bytes // block_bytes
    if not nr_data_blocks:
        raise InvalidArgument(f"{data.label}: {data.size_bytes} bytes, not one data block")
    opened = PoolMetadata.open(metadata, sectors, format_allowed=not read_only, data=data)
    engine = Engine(opened, metadata, data, clock=time.monotonic)
    drive(engine.preresume(PoolSettings(frozenset(features), 0, nr_data_blocks)))
    drive(engine.resume())
    return Pool(engine, block_bytes)


class Pool:
    """An open pool; a context manager. Thins are named by their device id, 0 to 2^24 - 1, as in dm-thin's messages."""

    def __init__(self, engine: Engine, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self._engine = engine
        self._files = ExitStack()
        self._volumes: list[Volume] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit and let go of the files. Volumes that are open are closed. Twice is harmless."""
        if self._closed:
            return
        try:
            for volume in list(self._volumes):
                volume.close()
            drive(self._engine.close())
        finally:
            self._closed = True
            self._files.close()

    def at_close(self, call: Callable[[], None]) -> None:
        """Called when the pool is closed, the last first."""
        self._files.callback(call)

    def _message(self, text: str) -> None:
        self._check_open()
        drive(self._engine.message(split_message(text)))

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgument("the pool is closed")

    def create_thin(self, dev_id: int) -> None:
        """An empty thin. Exists if it is there, NoSpace without metadata for it."""
        self._message(f"create_thin {dev_id}")

    def create_snap(self, dev_id: int, origin_id: int) -> None:
        """A writable snapshot of thin `origin_id`, as it is at this moment. Exists, NoSuchThin."""
        self._message(f"create_snap {dev_id} {origin_id}")

    def delete(self, dev_id: int) -> None:
        """Busy while it is open as a volume, NoSuchThin."""
        self._message(f"delete {dev_id}")

    def thins(self) -> dict[int, DeviceDetails]:
        """Every thin's record as of the last commit, by id: mapped blocks, transaction id, times."""
        self._check_open()
        drive(self._engine.status())
        return dict(self._engine.metadata.devices())

    def volume(self, dev_id: int, size_bytes: int) -> "Volume":
        """Open a thin. dm-thin keeps no size: `size_bytes`, whole sectors, is what the caller says. NoSuchThin."""
        self._check_open()
        if size_bytes <= 0 or size_bytes % SECTOR_BYTES:
            raise InvalidArgument(f"size_bytes {size_bytes}: a positive multiple of {SECTOR_BYTES}")
        volume = Volume(self, self._engine.open_thin(dev_id), size_bytes)
        self._volumes.append(volume)
        return volume

    def status(self) -> PoolStatus | None:
        """What dm-thin's status line says, after a commit; None in fail mode."""
        self._check_open()
        return PoolStatus.parse(drive(self._engine.status()))

    def commit(self) -> None:
        """Everything written is durable, of every volume. IOFailed."""
        self._check_open()
        drive(self._engine.space.commit())
        drive(_flush_of_data(self._engine))  # a commit without changes has flushed nothing

    def _submit(self, thin: Thin, bio: Bio) -> None:
        self._check_open()
        thin.submit(bio)
        drive(self._engine.work())
        if not bio.done:
            thin.take_back()
            raise NoSpace(f"thin {thin.dev_id}: no data block for byte {bio.offset}")
        if bio.error is not None:
            raise bio.error

    def _forget(self, volume: "Volume", thin: Thin) -> None:
        self._volumes.remove(volume)
        self._engine.close_thin(thin)


def _flush_of_data(engine: Engine) -> Steps[None]:
    yield engine.data.chain(engine.data.flush())


class Volume:
    """One open thin; a context manager. Offsets and lengths are bytes of any alignment, inside `size_bytes`."""

    def __init__(self, pool: Pool, thin: Thin, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._pool = pool
        self._thin: Thin | None = thin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def dev_id(self) -> int:
        return self._open_thin().dev_id

    @property
    def mapped_bytes(self) -> int:
        """What it maps at present, shared blocks included."""
        return self._open_thin().mapped_bytes

    def _open_thin(self) -> Thin:
        if self._thin is None:
            raise InvalidArgument("the volume is closed")
        return self._thin

    def _checked(self, operation: str, offset: int, length: int) -> Thin:
        if not 0 <= offset <= offset + length <= self.size_bytes:
            raise InvalidArgument(f"{operation} of {length} bytes at {offset}: the size is {self.size_bytes}")
        return self._open_thin()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; zeros where nothing was written. InvalidArgument outside, IOFailed."""
        thin = self._checked("read", offset, length)
        return thin.read(offset, length) if length else b""

    def write(self, offset: int, data: Buffer) -> None:
        """All of `data`; durable after `flush`. NoSpace in a full pool, IOFailed in a read-only or failed one."""
        length = memoryview(data).nbytes
        thin = self._checked("write", offset, length)
        if length and not thin.write_now(offset, data):
            self._pool._submit(thin, Bio(Op.WRITE, offset, length, data))

    def discard(self, offset: int, length: int) -> None:
        """Unmap the whole blocks inside the range; what is left of it stays as it is."""
        self._pool._submit(self._checked("discard", offset, length), Bio(Op.DISCARD, offset, length))

    def flush(self) -> None:
        """Everything written before is durable, mappings included."""
        self._pool._submit(self._open_thin(), Bio(Op.FLUSH))

    def runs(self) -> Iterator[tuple[int, int]]:
        """(begin, end) in bytes of every stretch that is mapped, ascending."""
        thin = self._open_thin()
        offset = 0
        while (begin := thin.next_data(offset, self.size_bytes)) is not None:
            offset = thin.next_hole(begin, self.size_bytes)
            yield begin, offset

    def open(self, mode: str = "rb") -> VolumeFile:
        """As a file: seekable, raw (io.BufferedReader and its kin go over it). Modes rb and r+b."""
        if mode not in ("rb", "r+b"):
            raise InvalidArgument(f"mode {mode!r}: rb or r+b")
        return VolumeFile(self, writable=mode == "r+b")

    def close(self) -> None:
        """Twice is harmless; nothing is flushed by it."""
        if self._thin is not None:
            thin, self._thin = self._thin, None
            self._pool._forget(self, thin)
