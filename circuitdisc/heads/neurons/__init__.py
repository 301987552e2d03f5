"""Neurons: what they write, and what a head does to them."""
