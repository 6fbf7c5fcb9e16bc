"""Tables, figures and pages, for runs and for sweeps."""

from segjax.reporting.figures import curves, heatmap, png
from segjax.reporting.page import Picture, Report, Section, as_markdown, html, write_report
from segjax.reporting.single_run import run_report
from segjax.reporting.tables import (
    Spread,
    Table,
    cell,
    latex,
    markdown,
    per_class_table,
    printed,
    show,
    spread,
    summary_line,
    to_csv,
)

__all__ = [
    "Picture",
    "Report",
    "Section",
    "Spread",
    "Table",
    "as_markdown",
    "cell",
    "curves",
    "heatmap",
    "html",
    "latex",
    "markdown",
    "per_class_table",
    "png",
    "printed",
    "run_report",
    "show",
    "spread",
    "summary_line",
    "to_csv",
    "write_report",
]
