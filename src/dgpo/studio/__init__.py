"""`dgpo studio`: a local web page of the runs in a folder, which follows them while they train.

Read `app.py` (the addresses), `runs.py` (what is read of a folder, and when) and `guard.py` (who may ask what). A page
is what `dgpo.report` makes, in another frame; `static/` has the scripts, without a build step. The studio reads run
folders and writes nothing there but requests (`dgpo.run.requests`): training does not depend on it.
"""
