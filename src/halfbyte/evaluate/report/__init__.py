"""Reports: one comparison as a web page, Markdown, JSON and text, each from the same view."""

from halfbyte.evaluate.report.view import ReportInput, losses
from halfbyte.evaluate.report.write import write_report

__all__ = ["ReportInput", "losses", "write_report"]
