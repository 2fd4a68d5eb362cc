"""The daemon's local socket: how a command reaches the process that has the store open."""
