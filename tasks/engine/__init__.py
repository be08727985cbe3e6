"""The machinery of the tasks: they know whether they are fresh, and luigi behaves as its users expect.

The workflow itself is in the modules of `tasks`; nothing here knows which tasks there are.
"""
