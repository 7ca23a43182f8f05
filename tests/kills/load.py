"""What goes on while a server is killed: writers that remember what was fsynced, fio, snapshots of a mounted ext4.

Promises: each ends by itself once the server is dead, because its I/O or its command fails; what it says is safe was
acknowledged by an fsync or by a command's exit status 0.
"""

import json
import os
import random
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.system.conftest import Server

MIB = 1 << 20
BLOCK = 65536
NR_BLOCKS = 1024


@dataclass(slots=True)
class Safe:
    """What must be there after the kill."""

    blocks: dict[int, bytes] = field(default_factory=dict)  # of the raw volume: its first 4 KiB
    files: dict[str, str] = field(default_factory=dict)  # of the ext4: name and digest
    snapshots: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    suspends: int = 0

    @property
    def nr(self) -> int:
        return len(self.blocks) + len(self.files) + len(self.snapshots)


def write_blocks(path: Path, safe: Safe, seed: int, _ending: threading.Event) -> None:
    chance = random.Random(seed)
    with open(path, "r+b", buffering=0) as volume:
        while True:
            blocks = {chance.randrange(NR_BLOCKS): chance.randbytes(16) * 256 for _ in range(chance.randrange(1, 9))}
            for block, data in blocks.items():
                safe.blocks.pop(block, None)  # until the fsync returns either content is right
                os.pwrite(volume.fileno(), data, block * BLOCK)
            os.fsync(volume.fileno())
            safe.blocks.update(blocks)


def write_files(directory: Path, safe: Safe, seed: int, _ending: threading.Event) -> None:
    chance = random.Random(seed)
    for number in range(100_000):
        name = f"{seed}-{number}"
        data = chance.randbytes(chance.randrange(1, 200_000))
        with open(directory / name, "wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        parent = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
        safe.files[name] = sha256(data).hexdigest()
        if number > 40:
            old = f"{seed}-{number - 40}"
            safe.files.pop(old, None)
            (directory / old).unlink()


def take_snapshots(server: Server, prefix: str, safe: Safe, first_id: int, ending: threading.Event) -> None:
    """Suspend, snapshot, resume the mounted volume; delete some; by the socket, as the drop-in does, which would start
    a server of its own once this one is dead."""
    chance = random.Random(first_id)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{server.mount}.sock")
    lines = connection.makefile("rb")

    def done(*words: str) -> bool:
        connection.sendall(json.dumps({"call": "dmsetup", "args": {"argv": words}}).encode() + b"\n")
        while True:
            answer = json.loads(lines.readline() or b'{"ok": 1}')
            if "ok" in answer:
                return bool(answer["ok"] == 0)

    for dev_id in range(first_id, first_id + 10_000):
        if ending.is_set():
            break
        suspended = done("suspend", f"{prefix}e")
        if suspended and done("message", f"{prefix}p", "0", f"create_snap {dev_id} 1"):
            safe.snapshots.add(dev_id)
        if not (suspended and done("resume", f"{prefix}e")):
            break
        safe.suspends += 1
        if len(safe.snapshots) > 3 and chance.random() < 0.7:
            victim = chance.choice(sorted(safe.snapshots))
            safe.snapshots.discard(victim)  # from here on either is right
            safe.deleted.add(victim)
            if not done("message", f"{prefix}p", "0", f"delete {victim}"):
                break
    lines.close()
    connection.close()


def run_fio(path: Path, seed: int) -> "subprocess.Popen[bytes]":
    words = [
        "fio", "--name=load", f"--filename={path}", "--rw=randrw", "--bsrange=4k-256k", "--ioengine=libaio",
        "--direct=1", "--iodepth=16", "--size=64m", "--time_based", "--runtime=600",
        f"--randseed={seed}",
    ]  # fmt: skip
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp")


def thread(function: Callable[..., None], *arguments: object) -> threading.Thread:
    """One that ends quietly when what it works on is gone."""

    def run() -> None:
        with suppress(OSError, subprocess.TimeoutExpired):
            function(*arguments)

    made = threading.Thread(target=run, daemon=True)
    made.start()
    return made
