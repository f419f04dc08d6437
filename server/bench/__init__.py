"""`rookery bench engine`: decode and prefill without HTTP, beside the official package in the same run."""
