"""Models as files: a student cut out of a teacher (prune), a teacher at another temperature
(temper). Weights go from file to file as bytes; nothing is computed of those that stay as they are.
"""
