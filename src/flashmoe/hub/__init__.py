"""Checkpoints from the hub: listed, read by range, downloaded, packed while they arrive."""
