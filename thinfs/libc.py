"""The few calls of the C library that Python's `os` lacks. Failures are OSError, as in `os`."""

import ctypes
import os
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    if _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_PR_SET_IO_FLUSHER: Final = 57


def set_io_flusher() -> None:
    """prctl(PR_SET_IO_FLUSHER): memory this thread allocates never waits for I/O, which may be its own to serve.

    Needs CAP_SYS_RESOURCE; threads started later inherit it.
    """
    if _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_SYNC_FILE_RANGE_WRITE_AND_WAIT: Final = 1 | 2 | 4  # WAIT_BEFORE | WRITE | WAIT_AFTER


def write_dirty_pages(fd: int) -> None:
    """sync_file_range(2) of the whole file: its dirty pages are written, and no flush is sent."""
    if _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE_AND_WAIT) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


MNT_FORCE: Final = 1


def umount2(path: str, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(path), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


_PR_SET_PDEATHSIG: Final = 1


def signal_at_death_of_parent(number: int) -> None:
    """prctl(PR_SET_PDEATHSIG): this process gets the signal when the thread that started it ends, however it ends."""
    if _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
