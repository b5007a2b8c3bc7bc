"""Canonical codes ↔ the order each kernel wants its weights in; pure tensor code, no GPU needed."""
