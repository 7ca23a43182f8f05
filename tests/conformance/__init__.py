"""dm-thin's contract as one suite over the seam; thinfs_suites.conformance in a wheel. Imports nothing of the tests."""
