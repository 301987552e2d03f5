"""Attribution without the big buffer: a backward pass layer by layer."""
