"""The student's side: its forward pass with the distillation loss, and the trainer around it."""
