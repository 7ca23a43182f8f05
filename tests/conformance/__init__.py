"""dm-thin's contract as one suite over the seam; in a wheel thinfs_suites.conformance. It imports nothing of the tests."""
