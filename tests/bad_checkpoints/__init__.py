"""Files and folders that are no models, each made by a function whose name tells its fault."""
