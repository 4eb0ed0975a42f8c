"""Clients that others wrote, unchanged, against a real cluster.

Each has an environment of its own under .cache/clients (`make conformance` makes them, `environments` says
how) and one small program in `programs/` that goes through the cases and prints what each shows.
`world` is the cluster they talk to; the tests compare what was seen with what a user of that client expects.
"""
