"""Gosling: the built-in model, with the corpus, trainer and evaluation that made it."""
