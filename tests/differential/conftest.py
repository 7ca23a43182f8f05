"""The kernels' guests, for these tests."""

from tests.guests import booted_6_1, booted_6_12, booted_7_2, guest, guest6_1, guest6_12, guest7_2

__all__ = ["booted_6_1", "booted_6_12", "booted_7_2", "guest", "guest6_1", "guest6_12", "guest7_2"]
