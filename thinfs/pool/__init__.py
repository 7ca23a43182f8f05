"""The thin-pool engine: metadata, mapping decisions, modes; synchronous and single-threaded."""
