"""The server: HTTP, text, engine, model and state. `cli.py` is where a process starts."""
