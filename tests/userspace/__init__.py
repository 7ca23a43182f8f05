"""The device-mapper in a process: what it does beyond what dm-thin's conformance suite asks."""
