"""Cross-model activation patching: which parts carry what fine-tuning changed."""
