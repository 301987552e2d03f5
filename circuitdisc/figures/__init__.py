"""Figures for papers, of results and of the folders that commands leave; matplotlib is imported when one is drawn."""

from circuitdisc.figures.plot import figure_of, plot

__all__ = ["figure_of", "plot"]
