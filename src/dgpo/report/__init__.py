"""A run folder turned into one self-contained page, and exported weights into a folder with a model card."""

from dgpo.report.card import write_card
from dgpo.report.page import ReportWriter, write_report

__all__ = ["ReportWriter", "write_card", "write_report"]
