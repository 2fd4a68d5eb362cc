"""The verbs: what can be asked of a store, one module each.

A verb is a generator over a `Context`, so that whoever runs it can do something
else between two of its steps: the daemon serves requests, an embedded run draws
a bar. Nothing here knows a terminal, a socket or the caller's environment.
"""
