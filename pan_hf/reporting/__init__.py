"""What shows: result files, tables, figures, the report, trackers."""
