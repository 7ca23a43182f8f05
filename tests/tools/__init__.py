"""The offline tools, held against those of thin-provisioning-tools 0.9.0."""
