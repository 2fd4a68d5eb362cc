"""The process that serves a store: builds everything, owns the nursery, keeps the log."""
