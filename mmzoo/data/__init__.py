"""Open data sets, and turn examples into batches."""
