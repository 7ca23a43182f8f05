"""dm-thin's contract as one suite over the seam. In a wheel thinfs_suites.conformance: it imports nothing of the tests."""
