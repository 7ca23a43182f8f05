"""A table: targets one after the other, from sector 0 without a gap, and where a request falls among them."""

import bisect

from thinfs.blockdev import Buffer
from thinfs.pool.served import Volume
from thinfs.units import sectors_to_bytes
from thinfs.userspace.target import Target


class Table:
    """`read_now` and `write_now` are the target's own where there is only one: the hot path has no step between."""

    def __init__(self, targets: list[Target], *, read_only: bool) -> None:
        self.targets = targets
        self.read_only = read_only
        self.starts = [sectors_to_bytes(target.line.start_sectors) for target in targets]
        last = targets[-1].line
        self.size_bytes = sectors_to_bytes(last.start_sectors + last.length_sectors)
        if len(targets) == 1:
            self.read_now = targets[0].read_now  # type: ignore[method-assign]
            self.write_now = targets[0].write_now  # type: ignore[method-assign]

    @property
    def volume(self) -> Volume | None:
        """Who may serve all of its I/O."""
        return self.targets[0].volume if len(self.targets) == 1 else None

    def _only_piece(self, offset: int, length: int) -> tuple[Target, int] | None:
        """The one target that holds the whole range, and the offset within it."""
        index = bisect.bisect_right(self.starts, offset) - 1
        end = self.starts[index + 1] if index + 1 < len(self.starts) else self.size_bytes
        return (self.targets[index], offset - self.starts[index]) if offset + length <= end else None

    def read_now(self, offset: int, length: int) -> bytes | None:
        piece = self._only_piece(offset, length)
        return None if piece is None else piece[0].read_now(piece[1], length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        piece = self._only_piece(offset, len(data))
        return piece is not None and piece[0].write_now(piece[1], data)

    def pieces(self, offset: int, length: int) -> list[tuple[Target, int, int, int]]:
        """(target, offset within it, length, offset within the request) of each target touched."""
        pieces = []
        index = bisect.bisect_right(self.starts, offset) - 1
        done = 0
        while done < length:
            target, start = self.targets[index], self.starts[index]
            end = self.starts[index + 1] if index + 1 < len(self.starts) else self.size_bytes
            size = min(length - done, end - offset - done)
            pieces.append((target, offset + done - start, size, done))
            done, index = done + size, index + 1
        return pieces

    def targets_from(self, offset: int) -> list[tuple[Target, int, int]]:
        """(target, its start, its size) of those that end behind `offset`."""
        sized = [
            (target, start, sectors_to_bytes(target.line.length_sectors))
            for target, start in zip(self.targets, self.starts, strict=True)
        ]
        return [(target, start, size) for target, start, size in sized if start + size > offset]

    def deps(self) -> list[tuple[int, int]]:
        """(major, minor) of the block devices named, each once, the one opened last first: as the kernel (seen)."""
        opened = dict.fromkeys(number for target in self.targets for number in target.deps())
        return list(reversed(opened))

    async def close(self) -> None:
        for target in self.targets:
            await target.close()
