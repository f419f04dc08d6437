"""Everything between the socket and the routes: limits and deadlines on the wire, checks before a handler runs."""
