"""Views: what the kernel sees of a store, as one name space of agents, versions and snapshots."""
