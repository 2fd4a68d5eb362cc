"""FUSE: the kernel's requests answered from the name space of `views`.

Handlers know no transport; a transport turns the kernel's messages into calls
of handlers and nothing else.
"""
