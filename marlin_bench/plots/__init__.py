"""Figures from rows: a plot places what panels.py worked out, and computes nothing."""
