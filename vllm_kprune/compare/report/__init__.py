"""The report of a comparison: its schema and file, and the page that shows it."""
