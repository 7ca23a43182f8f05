"""The text of device-mapper: tables, messages, status lines, and the seam that every backend offers."""
