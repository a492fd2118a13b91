"""What measures: held-out predictions, calibration, success of plans."""
