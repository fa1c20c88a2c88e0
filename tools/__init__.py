"""Tools of this repository: test hosts and generated documentation."""
