"""Benchmarks; that of the discovery algorithms is packed into an installed copy, too (`circuitdisc benchmark`)."""
