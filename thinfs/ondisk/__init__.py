"""The bytes of a pool's metadata, as construct schemas and frozen records; no I/O, no policy."""
