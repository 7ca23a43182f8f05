"""`python -m tests.kills`: SIGKILL of the server under load, again and again, and what was lost (`make kills`)."""
