"""Signing checkpoints of the logs: the keys, the signer, and the exchange with witnesses."""
