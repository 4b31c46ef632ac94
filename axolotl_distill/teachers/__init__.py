"""Sources of teacher signal: a local model (hf), an HTTP server (client). Import what you need:
one loads torch, the other does not."""
