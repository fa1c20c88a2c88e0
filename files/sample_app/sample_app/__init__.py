"""A small Tornado application that tells where it runs."""
