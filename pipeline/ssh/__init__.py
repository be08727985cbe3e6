"""SSH to a guest: connections, commands that run in it, and file transfers in both directions.

`connector` is the way in, and connects when it is first needed. `connection` is one connection, which paramiko carries;
`session`, `command` and `transfer` are Topcoat's own. The package knows a guest only by its `address`, and may import
store, settings, host and text.
"""
