"""The HTTP surface: one file an endpoint family, wire names stop here."""
