"""Block devices of the machine: loop devices, the links to them, and the file systems on them."""
