"""dm-thin's contract as one suite over the seam; installed as thinfs_conformance. Imports only itself and the packages."""
