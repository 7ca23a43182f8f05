"""Copy-on-write btrees, space maps and transactions, as the kernel's dm-persistent-data decides them."""
