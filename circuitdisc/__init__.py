"""circuitdisc."""
