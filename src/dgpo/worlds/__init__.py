"""Embedded worlds: task, renderer, detector and a small pretrained pipeline, on which every claim can be checked.

Read `shapes/` (captions of shapes) or `words/` (captions that ask for a word); `pretraining/` made their pipelines.
"""
