"""The contract of dm-thin, one suite over the seam; thinfs_suites.conformance in a wheel. Imports nothing of tests."""
