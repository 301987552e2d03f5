"""Models whose circuit is known."""
