"""Measurements of time and memory in comparison with other libraries."""
