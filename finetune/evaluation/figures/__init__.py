"""The figures of reports, predictions and comparisons: functions from plain data to the bytes of a PNG, by subject."""
