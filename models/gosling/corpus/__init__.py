"""Seeded generator of the dialogues Gosling is trained and tested on."""
