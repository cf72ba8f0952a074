"""From prompt ids to answer ids. This layer knows no text, no templates, no rows."""
