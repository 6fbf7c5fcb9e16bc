"""Tables, for runs and for sweeps."""

from segjax.reporting.tables import Table, cell, markdown, per_class_table, show, summary_line, to_csv

__all__ = ["Table", "cell", "markdown", "per_class_table", "show", "summary_line", "to_csv"]
