"""A few heads edited, learned or swept."""
