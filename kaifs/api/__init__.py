"""What a program or a command asks of a store, in one call each.

Every verb goes through `access.call`, whoever asks. Above it: `versions`, `snapshots`
and `security` (the specification's managers), `exchange` (folders in and out),
`session` (commands in a snapshot's sandbox), `signing` (with the user's own key),
`doctor` (what this machine lacks). The command line uses these wherever there is
more to a verb than parameters to pass on, and `access.call` for the rest. Nothing
here prints or reads arguments.
"""
