"""Signs checkpoints of the logs, and exchanges cosignatures with witnesses."""
