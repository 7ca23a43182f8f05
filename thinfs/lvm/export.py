"""A volume copied to a file or a stream.

Promises: the file is whole or not there, holes where there is nothing but zeros; what exists is not overwritten unless
asked for, and never one of the disks themselves.
"""

import errno
import os
import tempfile
from contextlib import suppress
from typing import BinaryIO, Final

from thinfs.errors import Exists, InvalidArgument, OtherError, from_oserror
from thinfs.lvm.reading import Readable

_PIECE_BYTES: Final = 1 << 20
_HOLE_BYTES: Final = 64 << 10
_ZEROS: Final = bytes(_HOLE_BYTES)


def export_to_file(volume: Readable, path: str, *, overwrite: bool, never: frozenset[tuple[int, int]]) -> int:
    """Bytes that are no hole. `never`: (device, inode) of files that must not be replaced."""
    _check_target(path, overwrite, never)
    directory, name = os.path.split(os.path.abspath(path))
    new = ""
    try:
        descriptor, new = tempfile.mkstemp(prefix=f".{name}.", suffix=".new", dir=directory)
        with os.fdopen(descriptor, "wb") as file:
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o666 & ~mask)
            written = _write_sparse(volume, file)
            os.fsync(file.fileno())
        if overwrite:
            os.rename(new, path)
        else:
            os.link(new, path)  # fails where somebody has made one meanwhile
            os.unlink(new)
        return written
    except BaseException as error:
        with suppress(OSError):
            os.unlink(new)
        if isinstance(error, OSError):
            raise from_oserror(error, path) from None
        raise


def _check_target(path: str, overwrite: bool, never: frozenset[tuple[int, int]]) -> None:
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_oserror(error, path) from None
    if (info.st_dev, info.st_ino) in never:
        raise InvalidArgument(f"{path}: it is one of the disks that are read")
    if os.path.isdir(path):
        raise OtherError(errno.EISDIR, f"{path}: a directory")
    if not overwrite:
        raise Exists(f"{path}: exists already; --force replaces it")
    if not os.path.isfile(path):
        raise InvalidArgument(f"{path}: not a regular file")


def _write_sparse(volume: Readable, file: BinaryIO) -> int:
    written = 0
    file.truncate(volume.size_bytes)
    for begin, end in volume.data_ranges(0, volume.size_bytes):
        for offset in range(begin, end, _PIECE_BYTES):
            data = volume.read(offset, min(_PIECE_BYTES, end - offset))
            for start in range(0, len(data), _HOLE_BYTES):
                piece = data[start : start + _HOLE_BYTES]
                if piece != _ZEROS[: len(piece)]:
                    file.seek(offset + start)
                    file.write(piece)
                    written += len(piece)
    file.flush()
    return written


def export_to_stream(volume: Readable, stream: BinaryIO) -> int:
    for offset in range(0, volume.size_bytes, _PIECE_BYTES):
        stream.write(volume.read(offset, min(_PIECE_BYTES, volume.size_bytes - offset)))
    stream.flush()
    return volume.size_bytes
