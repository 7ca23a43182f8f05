"""`python -m tests.soak`: many volumes and writers for minutes; what it takes stays bounded (`make soak`)."""
