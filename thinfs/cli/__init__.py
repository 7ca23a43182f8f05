"""Command lines: thinfs and the drop-in dmsetup."""
