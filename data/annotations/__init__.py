"""What people label with: one reader for each format, and the schema that all of them fill."""
