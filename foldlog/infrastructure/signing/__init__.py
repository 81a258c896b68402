"""Signs the checkpoints of the logs, and exchanges cosignatures with other services."""
