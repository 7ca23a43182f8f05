"""Random histories on the userspace engine, a plain-dictionary model and a kernel, compared answer by answer."""
