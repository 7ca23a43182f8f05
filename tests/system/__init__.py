"""The whole thing as a user has it: server, drop-in, files, and pools that move between thinfs and a kernel."""
