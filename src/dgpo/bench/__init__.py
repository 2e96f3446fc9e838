"""`dgpo bench`: every algorithm on the embedded task, from one base model, and the page that compares them.

Read `plan.py` (who is compared, and how), `run.py` (one run and its result) and `page.py` (the comparison).
"""

from dgpo.bench.overhead import measure_overhead
from dgpo.bench.page import read_rows, write_page
from dgpo.bench.plan import CONTENDERS, Plan
from dgpo.bench.run import bench

__all__ = ["CONTENDERS", "Plan", "bench", "measure_overhead", "read_rows", "write_page"]
