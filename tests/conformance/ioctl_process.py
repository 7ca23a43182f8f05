"""`thinfs serve --backend kernel` as the suite runs it under the preload library: its kernel is a server of thinfs.

Never: makes links in /dev/mapper, which belongs to the whole machine. Run as `python -m ….ioctl_process DIRECTORY`.
"""

import sys
import threading

import pytest

from kernel_backend import device_nodes
from thinfs.cli.kernel_assembly import kernel
from thinfs.server.daemon import log_to_stderr, serve_until_end

from .server_process import end_with_the_suite


def main(directory: str) -> None:
    log_to_stderr()
    threading.Thread(target=end_with_the_suite, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_nodes, "publish", lambda name, minor: None)
        patch.setattr(device_nodes, "withdraw", lambda name: None)
        serve_until_end(directory, kernel, lambda: None)


if __name__ == "__main__":
    main(*sys.argv[1:])
