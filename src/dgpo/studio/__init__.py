"""`dgpo studio`: a local web page of the runs in a folder, which follows them while they train.

Read `app.py` (the addresses), `run.py` and `listing.py` (what is read of run folders, and when) and `guard.py` (who may
ask what). A page is what `dgpo.report` makes, in another frame; `static/` has the scripts, without a build step. The
studio writes nothing into run folders but requests (`dgpo.run.requests`), and training does not depend on it.
"""
