"""Grids of runs, their execution and their reports."""
