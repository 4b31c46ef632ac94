"""Dataset and teacher to teacher store; stops and goes on at any moment."""

from axolotl_distill.capture.progress import CaptureReport
from axolotl_distill.capture.run import Capture

__all__ = ["Capture", "CaptureReport"]
