"""Helpers without a subject of their own: files, typed fields, devices. They know nothing of the rest of the package.

Read `files.py` (how files are read, and written whole or not at all) and `fields.py` (a dataclass from plain values).
"""
