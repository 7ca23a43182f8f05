"""dm-thin's contract as one suite over the seam. Installed as thinfs_conformance: it imports nothing of the tests."""
