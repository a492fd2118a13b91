"""What measures: held-out predictions, and success of plans."""
