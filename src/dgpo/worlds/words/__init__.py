"""The words world: captions that ask for a word, its render, and a reader that says what a picture spells.

Read `prompts.py` (what can be asked for), `render.py` (its picture) and `reader.py` (what a picture spells).
"""
