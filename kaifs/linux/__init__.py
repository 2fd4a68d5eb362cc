"""The operating system as kaifs needs it: files, locks, mounts, sockets, processes.

Nothing here knows what kaifs is. Failures are `OSError`s or the few small
errors that a module defines itself; who calls turns them into `KaifsError`s.
"""
