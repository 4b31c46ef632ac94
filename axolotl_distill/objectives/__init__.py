"""What is learned from a teacher's signal: the forward, the head, the losses' metrics."""
