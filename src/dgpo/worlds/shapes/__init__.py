"""The shapes world: captions of coloured shapes, their renders, and a detector that says what a picture shows.

Read `scenes.py` (what can be asked for), `render.py` (its picture) and `judge.py` (whether a picture has it).
"""
