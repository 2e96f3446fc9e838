"""`dgpo bench`: every algorithm on the embedded task, from one base model, and the page that compares them.

Read `plan.py` (who is compared, and how), `run.py` (one run and its result), `parallel.py` (several at once) and
`page.py` (the comparison).
"""
