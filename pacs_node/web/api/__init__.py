"""The JSON API: the questions and actions of the page, for programs that show a token."""
