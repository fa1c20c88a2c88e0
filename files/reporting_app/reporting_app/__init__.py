"""Pages that report on sequencing runs, in Flask; the runs are read from a REST API."""
