"""One module a command: words and order only; everything else is in the packages above."""
