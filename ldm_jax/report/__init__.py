"""The report of a sweep: from its cells' summaries to figures, a conclusion and one HTML page."""
