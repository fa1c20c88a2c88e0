"""A Flask application with reports of sequencing runs, which it reads from a REST API."""
