"""Offline tools over a pool's metadata, sharing one intermediate representation."""
