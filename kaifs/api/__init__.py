"""What a program or a command asks of a store, in one call each.

Modules: `access` (where the store is, and how a verb gets to it), `session`
(commands in a snapshot's sandbox), `snapshots` (the specification's
SnapshotIsolationManager and its types). Nothing here prints or reads arguments.
"""
