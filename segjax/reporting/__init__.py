"""Tables, figures and report pages of runs and sweeps; a name loads its module when it is first used."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from segjax.reporting.figures import curves, heatmap, png
    from segjax.reporting.page import Picture, Report, Section, as_markdown, html, write_report
    from segjax.reporting.run_page import inspect_run, run_report
    from segjax.reporting.tables import (
        Spread,
        Table,
        cell,
        format_rows,
        latex,
        markdown,
        per_class_table,
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
    "format_rows",
    "heatmap",
    "html",
    "inspect_run",
    "latex",
    "markdown",
    "per_class_table",
    "png",
    "run_report",
    "show",
    "spread",
    "summary_line",
    "to_csv",
    "write_report",
]
