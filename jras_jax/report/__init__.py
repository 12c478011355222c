"""One self-contained HTML page about a run, made only from the files of its folder; see `write_report`."""

from jras_jax.report.files import ReportError
from jras_jax.report.page import write_report

__all__ = ["ReportError", "write_report"]
