"""Payload: append-only checksummed segments, chunking, compression."""
