"""A run folder turned into one self-contained page."""

from dgpo.report.page import write_report

__all__ = ["write_report"]
