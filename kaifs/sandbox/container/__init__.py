"""Running a command in a container of an OCI runtime, with the options of a sandbox.

podman runs without a service, so it can be started in a mount namespace in
which alone the agent's files are mounted. docker's service lives in the
machine's own: there the mount is in a folder that only root can enter.
"""
