"""The status lines of the thin-pool and thin targets as typed values, parsed and printed to the letter.

    pool  = trans-id SP used/total SP used/total SP (held-root | "-") SP mode SP discard SP no-space
            SP ("needs_check" | "-") SP metadata-low-water SP          the trailing space is the kernel's
          | "Fail" | "Error"
    thin  = mapped-sectors SP (highest-mapped-sector | "-") | "Fail" | "Error" | "-"

Source: docs/reference/behaviour.md, 4.
"""

from dataclasses import dataclass
from typing import Final

from thinfs.errors import InvalidArgument

FAIL: Final = "Fail"
ERROR: Final = "Error"


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Counts in metadata blocks and data blocks; `held_root` 0 means no metadata snapshot."""

    transaction_id: int
    used_metadata_blocks: int
    nr_metadata_blocks: int
    used_data_blocks: int
    nr_data_blocks: int
    held_root: int
    mode: str  # rw, ro, out_of_data_space
    discard: str  # ignore_discard, discard_passdown, no_discard_passdown
    no_space: str  # error_if_no_space, queue_if_no_space
    needs_check: bool
    metadata_low_water_blocks: int

    def __str__(self) -> str:
        return (
            f"{self.transaction_id} {self.used_metadata_blocks}/{self.nr_metadata_blocks} "
            f"{self.used_data_blocks}/{self.nr_data_blocks} {self.held_root or '-'} "
            f"{self.mode} {self.discard} {self.no_space} "
            f"{'needs_check' if self.needs_check else '-'} {self.metadata_low_water_blocks} "
        )

    @classmethod
    def parse(cls, params: str) -> "PoolStatus | None":
        """None for `Fail` and `Error`."""
        words = params.split()
        if words in ([FAIL], [ERROR]):
            return None
        try:
            transaction_id, metadata, data, held, mode, discard, no_space, check, low_water = words
            used_metadata, nr_metadata = metadata.split("/")
            used_data, nr_data = data.split("/")
            return cls(
                int(transaction_id), int(used_metadata), int(nr_metadata), int(used_data), int(nr_data),
                0 if held == "-" else int(held), mode, discard, no_space, check == "needs_check", int(low_water),
            )  # fmt: skip
        except ValueError:
            raise InvalidArgument(f"not a thin-pool status: {params!r}") from None


@dataclass(frozen=True, slots=True)
class ThinStatus:
    mapped_sectors: int
    highest_mapped_sector: int | None

    def __str__(self) -> str:
        highest = "-" if self.highest_mapped_sector is None else self.highest_mapped_sector
        return f"{self.mapped_sectors} {highest}"

    @classmethod
    def parse(cls, params: str) -> "ThinStatus | None":
        """None for `Fail`, `Error` and the lone `-` of a device without an internal device."""
        words = params.split()
        if words in ([FAIL], [ERROR], ["-"]):
            return None
        try:
            mapped, highest = words
            return cls(int(mapped), None if highest == "-" else int(highest))
        except ValueError:
            raise InvalidArgument(f"not a thin status: {params!r}") from None
