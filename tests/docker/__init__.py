"""`thinfs docker` on copies of a directory that Docker made."""
