"""RWKV-4, 5, 6 and 7: checkpoints to tensors, tokens to hidden states and logits."""
