"""A server's way to its `agent_process`: calls on loop devices, made by that process and awaited by a thread here.

Promises: a thread that waits for an answer waits for nothing but a socket, so a SIGKILL ends it; errors are those of
`loop` and `file_system`. `ensure` and `close` are the main thread's: the agent ends with the thread that started it.
"""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from thinfs.blockdevs.loop import InUse


class Agent:
    """The process is started by `ensure`, and anew after it died."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._calls: socket.socket | None = None

    def ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [str(its.fileno()), str(os.getpid()), self._directory]
        with its:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "thinfs.blockdevs.agent_process", *words],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                cwd="/",
            )
        threading.Thread(target=process.wait, daemon=True).start()
        if self._calls is not None:
            self._calls.close()
        self._process, self._calls = process, ours

    def call(self, name: str, *arguments: Any) -> Any:
        """Any thread's. Given up by whoever wanted it, the call is made all the same."""
        request = json.dumps([name, arguments]).encode("ascii")
        ours, its = socket.socketpair()
        with ours:
            with its:
                if self._calls is None:
                    raise OSError(errno.EIO, "there is no process for block devices")
                try:
                    socket.send_fds(self._calls, [request], [its.fileno()])
                except OSError as error:
                    raise OSError(errno.EIO, f"the process for block devices has ended: {error.strerror}") from None
            data = b"".join(iter(lambda: ours.recv(65536), b""))
        if not data:
            raise OSError(errno.EIO, "the process for block devices has ended")
        answer = json.loads(data)
        if "in_use" in answer:
            raise InUse(answer["in_use"])
        if "errno" in answer:
            raise OSError(answer["errno"], answer["text"])
        return answer["ok"]

    def close(self) -> None:
        if self._calls is not None:
            with suppress(OSError):  # it has ended before
                self._calls.send(b"end")
            self._calls.close()
            self._calls = None
