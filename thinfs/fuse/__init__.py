"""The image files: one file per active device, through pyfuse3."""
