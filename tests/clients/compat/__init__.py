"""Clients of other projects against a real server; `python -m tests.clients.compat.run` installs and runs them."""
