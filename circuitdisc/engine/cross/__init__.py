"""Activations of another model, put into a run."""
