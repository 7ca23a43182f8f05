"""thinfs: device-mapper thin provisioning without the device mapper. README.md draws the layout."""
