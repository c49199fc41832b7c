"""Figures for people: plots, contact sheets, pages and tables. Needs no torch."""
