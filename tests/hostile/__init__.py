"""Hostile input, made by code: requests that are wrong in one way each, and byte streams that are not quite HTTP."""
