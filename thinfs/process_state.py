"""Whether a process is over, by proc(5). Imports `os` only: the drop-in client asks too."""

import os


def is_over(pid: int, thread: int | None = None) -> bool:
    """Is it a zombie, or its thread? False for one that is gone altogether. Other threads of a process that is over
    may live on, and hold its files."""
    path = f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fields = os.read(descriptor, 4096).rpartition(b")")[2].split()
    except OSError:  # it went meanwhile
        return False
    finally:
        os.close(descriptor)
    return fields[:1] in ([b"Z"], [b"X"])
