"""What a filter leaves behind: rows in a format, in shards, with a card and a report."""
