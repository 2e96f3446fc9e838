"""`dgpo bench`: every algorithm on the embedded task, from one base model, and the page that compares them.

Read `plan.py` (who is compared, and how), `run.py` (one run and its result) and `page.py` (the comparison).
"""
