"""All that knows Axolotl."""
