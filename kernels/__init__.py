"""RWKV's operators, one file each: a torch reference that is the specification, and the fast form beside it."""
