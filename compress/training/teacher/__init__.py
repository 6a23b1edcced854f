"""The teacher during training: a cache of its logits, or the network itself on every batch."""
