"""Programs that other people wrote for dm-thin or for block devices, on volumes of thinfs, with their own command lines."""
