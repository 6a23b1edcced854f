"""The teacher during training: its network and the cache of its logits."""
