"""A small Tornado application that reports the host, release and process that serve it."""
