"""Pools as an operator writes them down: a file that says what there shall be, and what brings it about."""
