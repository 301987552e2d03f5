"""Positioned circuits: an edge is kept at some spans of a prompt only."""
