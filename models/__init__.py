"""Models that ship with the project, and all that made them."""
