"""`python -m tests.server.stuck_server DIR`: a server that holds the lock and a socket, mounts DIR, and has a thread
that waits for an answer of its own which it never gives. Killed, it holds on to all of them. (root; linux/fuse.h)"""

import ctypes
import os
import struct
import sys
import threading
import time

from thinfs.server import paths
from thinfs.server.daemon import lock
from thinfs.server.server import bind

_IN_HEADER = struct.Struct("=IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding
_OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
# struct fuse_init_out of protocol 7.31: major, minor, max_readahead, flags, max_background, congestion_threshold,
# max_write, time_gran, max_pages, map_alignment, unused[8]
_INIT_OUT = struct.pack("=IIIIHHIIHH8I", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)


def mount(directory: str) -> int:
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"thinfs", os.fsencode(directory), b"fuse.thinfs", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {directory}")
    return descriptor


def main(directory: str) -> None:
    held = [lock(directory), bind(paths.socket_path(directory))]
    os.makedirs(directory, exist_ok=True)
    fuse = mount(directory)
    threading.Thread(target=os.stat, args=(f"{directory}/x",), daemon=True).start()
    request = os.read(fuse, 1 << 20)
    unique = _IN_HEADER.unpack_from(request)[2]
    os.write(fuse, _OUT_HEADER.pack(_OUT_HEADER.size + len(_INIT_OUT), 0, unique) + _INIT_OUT)
    os.read(fuse, 1 << 20)  # from here on the one who asks waits where no signal reaches him
    print("stuck", flush=True)
    time.sleep(600)
    print(held)


if __name__ == "__main__":
    main(sys.argv[1])
