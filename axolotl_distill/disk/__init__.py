"""Files that survive whatever is killed."""
