"""Sources of teacher signal: a local model (hf), a model behind a server (server, over client).
Import what you need: one loads torch, the other does not."""
