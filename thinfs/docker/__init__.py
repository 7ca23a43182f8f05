"""A directory of Docker's devicemapper driver: read, judged, snapshots taken, an unfinished transaction rolled back."""
