"""What `/v1/responses` keeps and says: items, the events that tell of them, and the store of finished turns."""
