"""A REST API of sequencing runs, in Flask."""
