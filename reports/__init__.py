"""Reports of a run: the HTML page, the paper figures, the notebooks. Nothing is measured here."""

from reports.figures import write_figures
from reports.html import write_report

__all__ = ["write_figures", "write_report"]
