"""A run folder turned into one self-contained page, and exported weights into a folder with a model card."""

from dgpo.report.card import write_card
from dgpo.report.page import write_report

__all__ = ["write_card", "write_report"]
