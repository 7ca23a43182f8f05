"""dm-thin's contract, one suite over the seam; in a wheel thinfs_suites.conformance. It imports nothing of the tests."""
