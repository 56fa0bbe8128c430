"""Several devices and processes as one training: rank, broadcast, all-reduce, barrier."""
