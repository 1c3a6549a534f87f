"""A loaded model for many clients at once."""
