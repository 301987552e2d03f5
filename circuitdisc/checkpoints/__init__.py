"""Checkpoints of one architecture: fine-tuned, compared, followed along a ladder."""
