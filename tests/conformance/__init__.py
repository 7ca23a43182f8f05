"""The contract of dm-thin, one suite over the seam; in a wheel thinfs_suites.conformance. Imports nothing of the tests."""
