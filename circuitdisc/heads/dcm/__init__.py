"""Desiderata-based masks: what heads carry."""
