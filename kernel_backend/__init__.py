"""The kernel's dm-thin behind thinfs's seam: on this machine, or in a User-Mode Linux guest."""
