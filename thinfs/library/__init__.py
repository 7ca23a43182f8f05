"""thinfs as a library: pools and volumes in the caller's own process, in plain synchronous code and in trio."""
