"""Tables, figures and report pages of runs and sweeps; a name loads its module when it is first used."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from segjax.reporting.charts import Chart, ConfusionMatrix, Grid, GridCell, ReliabilityDiagram
    from segjax.reporting.comparison import compare, comparison_report, group_runs, mean_iou_interval
    from segjax.reporting.detector_page import detector_report, inspect_detector
    from segjax.reporting.figures import curves, dots, heatmap, png
    from segjax.reporting.multilabel_page import inspect_multilabel, multilabel_report
    from segjax.reporting.report import (
        Overlay,
        Picture,
        Progress,
        Report,
        Section,
        Spread,
        Table,
        as_markdown,
        calibration_tables,
        cell,
        check_report,
        format_rows,
        html,
        latex,
        markdown,
        per_class_table,
        score_tables,
        show,
        spread,
        summary_line,
        to_csv,
        write_report,
    )
    from segjax.reporting.run_page import inspect_run, run_report

__all__ = [
    "Chart",
    "ConfusionMatrix",
    "Grid",
    "GridCell",
    "Overlay",
    "Picture",
    "Progress",
    "ReliabilityDiagram",
    "Report",
    "Section",
    "Spread",
    "Table",
    "as_markdown",
    "calibration_tables",
    "cell",
    "check_report",
    "compare",
    "comparison_report",
    "curves",
    "detector_report",
    "dots",
    "format_rows",
    "group_runs",
    "heatmap",
    "html",
    "inspect_detector",
    "inspect_multilabel",
    "inspect_run",
    "latex",
    "markdown",
    "mean_iou_interval",
    "multilabel_report",
    "per_class_table",
    "png",
    "run_report",
    "score_tables",
    "show",
    "spread",
    "summary_line",
    "to_csv",
    "write_report",
]
