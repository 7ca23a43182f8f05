"""The commands of dmsetup, run inside the server: options, commands, and what they print."""
