"""The circuit of each checkpoint, scored on every one of them."""
