"""Generated input for everything that reads what others have written; the same on every run."""
