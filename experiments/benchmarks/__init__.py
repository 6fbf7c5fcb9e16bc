"""Measurements of time and memory, beside other libraries."""
