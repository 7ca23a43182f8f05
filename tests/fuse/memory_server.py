"""A server of in-memory images for the mount tests: `python -m tests.fuse.memory_server DIR NAME=BYTES …`.

It prints `ready` when the mount answers, then obeys one JSON object a line on standard input and answers
each with one on standard output; SIGTERM or the end of the input stops it.
"""

import errno
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

import trio

from thinfs.bio import Bio, Op
from thinfs.errors import IOFailed, NotSupported, ThinfsError
from thinfs.fuse.mount import Mount, serve

BLOCK_BYTES = 65536


class MemoryImage:
    """A bytearray with a map of the 64 KiB blocks that were written, and switches for tests."""

    def __init__(self, name: str, inode: int, size_bytes: int, *, read_only: bool = False) -> None:
        self.name, self.inode, self.read_only = name, inode, read_only
        self.block_bytes = BLOCK_BYTES
        self.written_ns = 0
        self.data = bytearray(size_bytes)
        self.mapped: set[int] = set()
        self.origin: set[int] = set()  # blocks where an external origin shows through
        self.open_count = self.nr_flushes = 0
        self.full = False  # the pool is full, and queues
        self.waiting: list[Bio] = []
        self.broken = False  # flush fails
        self.buggy = False  # read raises what it never should
        self.no_discard = False
        self.arrival = trio.Event()

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @property
    def allocated_bytes(self) -> int:
        return len(self.mapped) * BLOCK_BYTES

    def opened(self) -> None:
        self.open_count += 1

    def closed(self) -> None:
        self.open_count -= 1

    def _blocks(self, offset: int, length: int) -> range:
        return range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))

    def read_now(self, offset: int, length: int) -> bytes | None:
        if self.buggy:
            raise ZeroDivisionError("a bug in the engine")
        return bytes(memoryview(self.data)[offset : offset + length])

    def write_now(self, offset: int, data: bytes | memoryview) -> bool:
        if not self.mapped.issuperset(self._blocks(offset, len(data))):
            return False
        self.data[offset : offset + len(data)] = data
        return True

    def submit(self, bio: Bio) -> None:
        needs_room = bio.op in (Op.WRITE, Op.ZERO, Op.PROVISION)
        if needs_room and self.full and not self.mapped.issuperset(self._blocks(bio.offset, bio.length)):
            self.waiting.append(bio)
            self.arrival.set()
            return
        try:
            self._do(bio)
        except ThinfsError as error:
            bio.complete(error)
        else:
            bio.complete()

    def make_room(self) -> None:
        self.full = False
        waiting, self.waiting = self.waiting, []
        for bio in waiting:
            self.submit(bio)

    def _do(self, bio: Bio) -> None:
        begin, end = bio.offset, bio.offset + bio.length
        match bio.op:
            case Op.READ:
                bio.data = bytes(memoryview(self.data)[begin:end])
            case Op.WRITE | Op.ZERO | Op.PROVISION:
                self.mapped.update(self._blocks(begin, bio.length))
                self.origin -= self.mapped
                if bio.op is not Op.PROVISION:
                    self.data[begin:end] = bio.data if bio.op is Op.WRITE else bytes(bio.length)
            case Op.DISCARD:
                self._discard(begin, end)
            case Op.FLUSH:
                self.nr_flushes += 1
                if self.broken:
                    raise IOFailed(f"{self.name}: commit failed")

    def _discard(self, begin: int, end: int) -> None:
        if self.no_discard:
            raise NotSupported(f"{self.name}: discard is not advertised")
        for block in range(-(-begin // BLOCK_BYTES), end // BLOCK_BYTES):
            self.mapped.discard(block)
            if block not in self.origin:
                self.data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)

    def next_data(self, offset: int) -> int | None:
        while offset < self.size_bytes:
            if offset // BLOCK_BYTES in self.mapped | self.origin:
                return offset
            offset = (offset // BLOCK_BYTES + 1) * BLOCK_BYTES
        return None

    def next_hole(self, offset: int) -> int:
        while offset < self.size_bytes and offset // BLOCK_BYTES in self.mapped | self.origin:
            offset = (offset // BLOCK_BYTES + 1) * BLOCK_BYTES
        return min(offset, self.size_bytes)


class MemorySource:
    def __init__(self) -> None:
        self.images: dict[str, MemoryImage] = {}
        self._last_inode = 1

    def add(self, name: str, size_bytes: int, *, read_only: bool = False) -> None:
        self._last_inode += 1
        self.images[name] = MemoryImage(name, self._last_inode, size_bytes, read_only=read_only)

    def names(self) -> Sequence[str]:
        return list(self.images)

    def lookup(self, name: str) -> MemoryImage | None:
        return self.images.get(name)


async def obey(source: MemorySource, mount: Mount, do: str, name: str, **arguments: Any) -> dict[str, Any]:
    if do == "add":
        source.add(name, **arguments)
        return {}
    image = source.images[name]
    match do:
        case "remove":
            del source.images[name]
            await mount.device_gone(name)
        case "rename":
            source.images[arguments["new_name"]] = source.images.pop(name)
            image.name = arguments["new_name"]
            await mount.device_gone(name)
        case "resize":
            size = arguments["size_bytes"]
            image.data = image.data[:size] + bytes(max(0, size - len(image.data)))
            await mount.device_resized(image)
        case "flush_dirty":
            await mount.flush_dirty(image)
        case "settle":
            await mount.settle()
        case "fill":
            image.full = True
        case "make_room":
            image.make_room()
        case "wait_for_writers":
            while len(image.waiting) < arguments["count"]:
                image.arrival = trio.Event()
                await image.arrival.wait()
        case "set":
            for key, value in arguments.items():
                setattr(image, key, set(value) if isinstance(value, list) else value)
        case "poke":  # the data changes behind the mount's back
            image.data[:1] = arguments["byte"].encode()
        case "state":
            pass
        case _:
            return {"error": f"what is {do}?"}
    return {
        "open_count": image.open_count,
        "nr_flushes": image.nr_flushes,
        "nr_waiting": len(image.waiting),
        "mapped": sorted(image.mapped),
        "first": chr(image.data[0]) if image.data else "",
    }


async def listen(source: MemorySource, mount: Mount) -> None:
    buffer = b""
    async with trio.lowlevel.FdStream(0) as commands:
        async for chunk in commands:
            buffer += chunk
            while b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                print(json.dumps(await obey(source, mount, **json.loads(line))), flush=True)


async def main(directory: str, devices: Sequence[str]) -> None:
    source = MemorySource()
    for device in devices:
        name, _, size = device.partition("=")
        source.add(name, int(size))
    async with trio.open_nursery() as nursery:

        async def until_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        async def until_unmounted(*, task_status: trio.TaskStatus[Mount]) -> None:
            await serve(source, directory, task_status=task_status)
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_signal)
        mount = await nursery.start(until_unmounted)
        print("ready", flush=True)
        await listen(source, mount)
        nursery.cancel_scope.cancel()


def refusal(error: BaseException) -> ThinfsError | None:
    """The ThinfsError inside the exception groups of the nurseries."""
    if isinstance(error, BaseExceptionGroup):
        found = [refusal(inner) for inner in error.exceptions]
        return next((inner for inner in found if inner is not None), None)
    return error if isinstance(error, ThinfsError) else None


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2:])
    except BaseException as error:
        refused = refusal(error)
        if refused is None:
            raise
        print(f"{errno.errorcode[refused.errno]}: {refused}", flush=True)
        sys.exit(1)
