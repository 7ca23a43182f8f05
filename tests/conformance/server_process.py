"""`thinfs serve --foreground` as the suite runs it: files and mount only, disks that can be made to fail.

Never: attaches loop devices or makes links in /dev/mapper, which belong to the whole machine.
Run as `python -m ….server_process DIRECTORY NO_SPACE_TIMEOUT_SECONDS native|pyfuse3`; NOTIFY_SOCKET hears READY=1.
"""

import os
import signal
import sys
import threading
from functools import partial

import pytest

from thinfs.blockdevs import nodes
from thinfs.server.assembly import userspace
from thinfs.server.daemon import log_to_stderr, serve_until_end
from thinfs.userspace import pools

from . import faults


def end_with_the_suite() -> None:
    """Its end of our standard input closes however it ends."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main(directory: str, no_space_timeout: str, served_by: str) -> None:
    native = {"native": True, "pyfuse3": False}[served_by]
    log_to_stderr()
    threading.Thread(target=end_with_the_suite, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch, faults.installed(servable=native):
        patch.setattr(nodes, "available", lambda: "the suite uses the files")
        patch.setattr(pools, "NO_SPACE_TIMEOUT_SECONDS", float(no_space_timeout))
        serve_until_end(directory, partial(userspace, native=native), lambda: None)


if __name__ == "__main__":
    main(*sys.argv[1:])
