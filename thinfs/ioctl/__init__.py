"""Device-mapper's ioctls for programs that know nothing of thinfs: the server's door, and what leads programs to it."""
