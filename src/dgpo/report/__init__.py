"""A run folder turned into one self-contained page, and exported weights into a folder with a model card.

Read `page.py` (`write_report`), `sections.py` (what the page says) and `verdict.py` (whether the run learned).
"""

from dgpo.report.card import StockUse, write_card
from dgpo.report.page import ReportWriter, write_report

__all__ = ["ReportWriter", "StockUse", "write_card", "write_report"]
