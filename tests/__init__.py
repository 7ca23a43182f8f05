"""The engine of the test processes is interpreted: they plant bugs, patch, measure coverage. Servers are compiled."""

import os

os.environ.setdefault("THINFS_PURE", "1")
