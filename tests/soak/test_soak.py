"""Some seconds of `make soak`."""

from pathlib import Path

from tests.soak.soak import MIB, Soak

RESIDENT_BYTES = 400 * MIB  # of the ten-minute run with 100 volumes; far more than is seen
DESCRIPTORS_A_VOLUME = 4


def test_what_a_server_takes_is_bounded_and_given_back(tmp_path: Path) -> None:
    soak = Soak(tmp_path, nr_volumes=12, nr_writers=4, seed=1)
    with soak.running():
        before, peak, after = soak.run(5)
    assert soak.done["writes"] > 100 and soak.done["snapshots"] > 0
    assert peak.resident_bytes < RESIDENT_BYTES
    assert peak.descriptors < before.descriptors + DESCRIPTORS_A_VOLUME * (soak.nr_volumes + 1) + 64
    assert after.descriptors <= before.descriptors and after.loop_devices == 0
