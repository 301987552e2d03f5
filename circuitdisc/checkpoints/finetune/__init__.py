"""Fine-tuning: a ladder of checkpoints from one base."""
