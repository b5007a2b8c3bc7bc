"""One page of a run: HTML that needs nothing else, or Markdown."""
