"""The engine: which requests run in a step, one forward pass, one token each. Knows nothing of text or HTTP."""
