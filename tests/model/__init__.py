"""Exhaustive models of the protocols in shared memory: every interleaving of a few processes, with a death at
any step."""
