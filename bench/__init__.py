"""The bench: thinfs front to back beside its peers, the engine alone, the drop-in; `make bench` runs it all."""
