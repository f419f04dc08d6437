"""Programs that talk to the server over HTTP, and to nothing else of this project."""
