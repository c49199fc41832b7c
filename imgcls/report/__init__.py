"""Plots, contact sheets, pages and tables of figures. Needs no torch."""
