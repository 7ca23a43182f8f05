"""Programs of other people for dm-thin or for block devices, with their own command lines, on volumes of thinfs."""
