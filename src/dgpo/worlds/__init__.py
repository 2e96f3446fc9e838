"""Embedded worlds: task, renderer, detector and a small pretrained pipeline, on which every claim can be checked."""
