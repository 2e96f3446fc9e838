"""People as a reward: groups of pictures that wait for an answer, and the answers, both as files of the run folder.

The trainer draws groups ahead and learns from answers (training/taught.py); the studio shows the groups and keeps the
answers (studio/teach.py). They are processes of their own and meet only here: either may be killed at any moment.
"""
