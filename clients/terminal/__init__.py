"""What `rookery chat` is made of: the conversation, its input, and markdown as it streams."""
