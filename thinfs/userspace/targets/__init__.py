"""The targets a table may name, one file each: its arguments and checks, its status, its I/O. `known` lists them."""
