"""One self-contained HTML page about a run, made only from the files of its folder; see `write_report`."""

from jras_jax.report.page import write_report
from jras_jax.report.run_folder import ReportError

__all__ = ["ReportError", "write_report"]
