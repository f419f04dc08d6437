"""The model's step in native code for processors: C sources, their binding, and weights packed for them."""
