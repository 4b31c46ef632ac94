"""Dataset and teacher to teacher store; stops and goes on at any moment."""

from axolotl_distill.capture.run import CaptureReport, capture

__all__ = ["CaptureReport", "capture"]
