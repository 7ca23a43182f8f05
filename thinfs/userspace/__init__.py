"""Device-mapper in a process: named devices, tables, suspend and resume, events."""
