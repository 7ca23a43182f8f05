"""What a backend lacks, by name and with the reason: the one place that takes a test away from a backend.

A test that needs something says so: `@pytest.mark.needs("gigabyte")`. It is then deselected, and listed with the
reason at the end of the run, on the backends whose entry here names it.
"""

from typing import Final

BACKENDS: Final = (
    "userspace", "server", "server-pyfuse3", "ioctl", "kernel6.1", "kernel6.12", "kernel7.2", "kernel",
)  # fmt: skip

LACKS: Final[dict[str, dict[str, str]]] = {
    "userspace": {},
    "server": {"failing data": "threads serve it past what makes it fail; server-pyfuse3 runs the test"},
    "server-pyfuse3": {},
    "ioctl": {},
    "kernel6.1": {},
    "kernel6.12": {},
    "kernel7.2": {},
    "kernel": {"gigabyte": "its disks lie in memory, where zeroing a block of 1 GiB may not fit"},
}
