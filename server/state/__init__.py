"""Where recurrent states live: the slots of running requests, and what outlives them."""
